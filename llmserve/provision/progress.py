"""How long work tells what it is doing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

Notify: TypeAlias = Callable[[str, float | None], None]
"""Called with what is being done, in words, and how much of it is done (0 to 1, ``None``
when unknown). May be called often, and from any thread."""


def silent(_text: str, _fraction: float | None = None) -> None:
    """Nobody watches."""


@contextmanager
def terminal_progress() -> Iterator[Notify]:
    """A progress bar on standard error; where that is no terminal, a line for each step."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        last = ""

        def say(text: str, _fraction: float | None = None) -> None:
            nonlocal last
            if text != last:
                console.print(text, highlight=False, soft_wrap=True, markup=False)
                last = text

        yield say
        return

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bars:
        current = ("", bars.add_task("", visible=False))

        def show(text: str, fraction: float | None = None) -> None:
            nonlocal current
            if text != current[0]:
                # The bar of the step before is complete now, whatever it last said.
                bars.update(current[1], total=1.0, completed=1.0)
                current = (text, bars.add_task(text, total=None))
            if fraction is not None:
                bars.update(current[1], total=1.0, completed=fraction)

        yield show
