"""``llmserve bench``: put a server under load, or two of them in turn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from llmserve.cli.bench_options import (
    LOAD,
    OBJECTIVES,
    OUTPUT,
    TARGETS,
    WORKLOAD,
    decorated,
    make_plan,
)

if TYPE_CHECKING:
    from llmserve.loadtest.plan import Plan
    from llmserve.loadtest.results import Result

_SLO_MISSED = 3
_MOST_FILES = 65_536


@click.command(short_help="Put a server under load and measure it, or compare two.")
@decorated(TARGETS, LOAD, WORKLOAD, OBJECTIVES, OUTPUT)
def bench(json_file: str | None, html_file: str | None, details: bool, **given: Any) -> int:
    """Measure a running server: latencies, token rates, goodput. Any server with OpenAI's
    chat or completions route will do; it must stream and report usage.

    A closed loop keeps a number of requests in flight (--concurrency); an open loop sends
    them at a rate, whatever becomes of them (--rate). Several values are steps of a ramp:
    1,2,4 or FIRST:LAST:STEP.

    LENGTHS are tokens: N, LOW-HIGH, normal:MEAN,SD or lognormal:MEAN,SD.

    Exits with 1 when no request was completed, and with 3 when --require was missed.
    """
    for option, path in (("--json", json_file), ("--html", html_file)):
        _check_writable(option, path)
    plan = make_plan(click.get_current_context().obj, given)
    result = _measured(plan)
    _write(result, json_file, html_file, details=details)
    if json_file != "-":
        _show(result)
    missed = result.missed()
    if missed:
        levels = ", ".join(f"{each:g}" for each in missed)
        click.echo(
            f"llmserve: --require {100 * (plan.require or 0):g} % was missed at load {levels}.",
            err=True,
        )
    return _SLO_MISSED if missed else 0


def _measured(plan: Plan) -> Result:
    import asyncio

    import uvloop

    from llmserve.cli.bench_progress import Progress
    from llmserve.loadtest.session import run

    _allow_files()
    with Progress(plan) as progress, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run(plan, progress))


def _allow_files() -> None:
    """Every connection is an open file; the usual limit of 1024 is for programs that
    select(2)."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _check_writable(option: str, path: str | None) -> None:
    """Before the run: a report that cannot be written after it would be a pity."""
    import os
    from pathlib import Path

    from llmserve.errors import ConfigError

    if path is None or (path == "-" and option == "--json"):
        return
    place = Path(path)
    if place.is_dir() or not os.access(
        place if place.exists() else place.absolute().parent, os.W_OK
    ):
        raise ConfigError(f"{option}: {path} cannot be written.")


def _write(result: Result, json_file: str | None, html_file: str | None, *, details: bool) -> None:
    import json
    from datetime import datetime
    from pathlib import Path

    from llmserve.loadtest.report_html import as_html
    from llmserve.loadtest.report_json import as_json

    now = datetime.now().astimezone()
    if json_file is not None:
        data: Mapping[str, Any] = {"taken": now.isoformat(), **as_json(result, details=details)}
        text = json.dumps(data, indent=1, ensure_ascii=False) + "\n"
        if json_file == "-":
            click.echo(text, nl=False)
        else:
            Path(json_file).write_text(text, encoding="utf-8")
    if html_file is not None:
        text = as_html(result, now.strftime("%d %B %Y, %H:%M %Z"))
        Path(html_file).write_text(text, encoding="utf-8")


def _show(result: Result) -> None:
    from rich.console import Console
    from rich.table import Table as Grid

    from llmserve.cli.terminal import printable
    from llmserve.loadtest.tables import tables

    # Wide enough for every table: figures that are cut off are of no use.
    console = Console(soft_wrap=True, width=200)
    for table in tables(result):
        if table.detail and len(result.plan.load.levels) > 1:
            continue
        grid = Grid(box=None, pad_edge=False, show_header=any(table.head))
        for place, name in enumerate(table.head):
            text = place == 0 or len(table.head) == 2 or table.title == "Failed requests"
            grid.add_column(name, justify="left" if text else "right")
        for row in table.rows:
            grid.add_row(*(printable(cell) for cell in row))
        console.print(f"\n{table.title}", markup=False, highlight=False)
        console.print(grid, soft_wrap=False)
    share = result.plan.require
    if share is not None and len(result.plan.load.levels) > 1:
        best = result.best(share)
        highest = "none" if best is None else f"{best:g}"
        console.print(f"\nHighest load within the objectives: {highest}", highlight=False)
    for each in result.warnings():
        console.print(f"\nwarning: {each}", markup=False, highlight=False)
