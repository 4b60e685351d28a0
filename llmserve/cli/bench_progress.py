"""How far a load test is, on standard error."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

if TYPE_CHECKING:
    from llmserve.loadtest.load import Step
    from llmserve.loadtest.plan import Plan
    from llmserve.loadtest.results import Sample


class Progress:
    """A bar on a terminal, drawn a few times a second and never by a thread of its own,
    which would disturb the measurement; elsewhere one line for each step."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._console = Console(file=sys.stderr)
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[state]}"),
            console=self._console,
            auto_refresh=False,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._steps = len(plan.addresses) * len(plan.load.levels) * plan.rounds
        self._number = 0

    def __enter__(self) -> Progress:
        self._bar.start()
        self._task = self._bar.add_task("preparing", total=1.0, state="")
        self._bar.refresh()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def begin(self, target: int, level: float, number: int) -> None:
        """A step begins."""
        self._number += 1
        unit = "req/s" if self._plan.load.kind == "open" else "at once"
        name = f", server {'AB'[target]}" if len(self._plan.addresses) > 1 else ""
        rounds = f", round {number + 1}" if self._plan.rounds > 1 else ""
        self._what = f"step {self._number}/{self._steps}: {level:g} {unit}{name}{rounds}"
        self._bar.update(self._task, description=self._what, completed=0.0, state="")
        self._bar.refresh()

    def look(self, step: Step) -> None:
        """Draw how far the step is."""
        if self._bar.disable:
            return
        load, done = self._plan.load, len(step.records)
        shares = [done / load.requests] if load.requests else []
        if load.seconds:
            shares.append((time.perf_counter() - step.begin) / load.seconds)
        failed = sum(each.failure is not None for each in step.records)
        state = f"{done:,} done, {step.in_flight} in flight" + (f", {failed} failed" * bool(failed))
        self._bar.update(self._task, completed=min(max(shares), 1.0), state=state)
        self._bar.refresh()

    def end(self, sample: Sample) -> None:
        """Say on one line what the step has shown."""
        if not self._bar.disable:
            return
        figures = sample.figures
        failed = f", {figures.failed} failed" if figures.failed else ""
        self._console.print(
            f"{self._what}: {figures.completed} done{failed} in {figures.seconds:.1f} s",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
