"""``python -m bench``: the command line."""

from __future__ import annotations

import datetime
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import click
import httpx
import msgspec
import uvloop
from rich.console import Console

from bench.added import Added
from bench.client import BenchError
from bench.floor import Floor
from bench.gaps import LongPrompts
from bench.goals import Verdict, judge
from bench.idle import Idle
from bench.kept import Kept
from bench.page import PAGE, around, write_page
from bench.parts import Part, Setup
from bench.report import commit, figures_table, machine, write_json
from bench.second_tool import SecondTool
from bench.servers import ENGINE, fitting
from bench.starts import Starts
from bench.streams import DEMO, PACED, PROMPTS, TINY
from bench.turns import go_first
from bench.values import Found, rows

PARTS: tuple[Part, ...] = (
    *(TINY, PACED, PROMPTS, Floor(), DEMO),
    *(Added(), LongPrompts(), Starts(), Idle(), SecondTool()),
)
WIDTH = 110
PLAIN: dict[str, Any] = {"markup": False, "highlight": False, "soft_wrap": True}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1))
@click.option("--quick", is_flag=True, help="One small round: does it run at all? No verdict.")
@click.option(
    "--engine",
    type=click.Choice(["vllm", "fake"]),
    default="vllm",
    show_default=True,
    help="With 'fake', llmserve is measured alone, and its engine runs in the same process.",
)
@click.option("--only", multiple=True, metavar="WORD", help="What has this in its name.")
@click.option(
    "--engine-arg",
    "extra",
    multiple=True,
    metavar="NAME=JSON",
    help="An engine argument for both servers, such as gpu_memory_utilization=0.3.",
)
@click.option(
    "--json",
    "json_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write everything to this file, in bench/results/ say.",
)
@click.option(
    "--keep",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write every part to this file as soon as it is done, and take from there what is "
    "done already: a run that was stopped goes on.",
)
@click.option(
    "--page",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Write the results into this page. Without --quick, --only and --engine fake: "
    "docs/performance.md.",
)
def main(
    rounds: int,
    quick: bool,
    engine: str,
    only: Sequence[str],
    extra: Sequence[str],
    json_path: Path | None,
    keep: Path | None,
    page: Path | None,
) -> None:
    """Measure llmserve and vLLM's own server side by side, and judge llmserve's goals. Ends
    with 1 when a goal is missed or something could not be measured."""
    signal.signal(signal.SIGTERM, _terminated)
    if page is None and not (quick or only or engine == "fake"):
        page = PAGE
    if page is not None:
        with _refusing("--page"):
            around(page)
    notes = Console(stderr=True)
    with tempfile.TemporaryDirectory() as folder:
        setup = Setup(
            rounds=1 if quick else rounds,
            quick=quick,
            with_vllm=engine == "vllm",
            only=only,
            arguments=ENGINE | _arguments(extra),
            folder=Path(folder),
            say=lambda text: notes.print(text, **PLAIN),
        )
        parts = [part for part in PARTS if any(map(setup.wants, part.keys(setup)))]
        if not parts:
            raise click.BadParameter(f"nothing has any of {', '.join(only)} in its name")
        if setup.with_vllm:
            with _refusing("--engine"):
                more = fitting()
            setup = replace(setup, arguments={**more, **setup.arguments})
        with _refusing("--keep"):
            kept = Kept(keep, setup, {**machine(), "commit": commit()})
        first = go_first()
        begin, load = time.monotonic(), [os.getloadavg()[0]]
        found, failures = _measure(parts, setup, kept)
        load.append(os.getloadavg()[0])
    about = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "rounds": setup.rounds,
        "minutes, without what was kept": (time.monotonic() - begin) / 60,
        "load average before and after": load,
        "the client goes before other processes": first,
        "engine": engine,
        "engine arguments": {name: str(value) for name, value in setup.arguments.items()},
        "could not be measured": failures,
    } | machine()
    verdicts = judge(found.values)
    if json_path is not None:
        write_json(json_path, found, verdicts, about)
    if page is not None:
        write_page(page, found, about, judged=not quick)
    _show(found, about)
    sys.exit(_judged(verdicts, failures, setup, notes))


@contextmanager
def _refusing(option: str) -> Iterator[None]:
    """What is wrong with a file that an option names."""
    try:
        yield
    except BenchError as error:
        raise click.BadParameter(str(error), param_hint=option) from error


def _measure(parts: Sequence[Part], setup: Setup, kept: Kept) -> tuple[Found, list[str]]:
    """What all parts have found, and the names of those that failed. One that fails does
    not take the others with it."""
    found, failures = Found(), []
    for part in parts:
        done = kept.get(part.name)
        if done is not None:
            setup.say(f"{part.name}: measured already")
            found.add(done)
            continue
        setup.say(f"{part.name}: starting")
        try:
            done = uvloop.run(part.measure(setup))
            kept.put(part.name, done)
            found.add(done)
        except (BenchError, httpx.HTTPError, OSError) as error:
            setup.say(f"bench: {part.name}: {error}")
            failures.append(part.name)
    return found, failures


def _show(found: Found, about: dict[str, Any]) -> None:
    console = Console()
    console.width = max(console.width, WIDTH)
    console.print(figures_table(rows(found.values)))
    for name, value in {**about, **found.notes}.items():
        console.print(f"{name}: {value}", **PLAIN)


def _judged(
    verdicts: Sequence[Verdict], failures: Sequence[str], setup: Setup, notes: Console
) -> int:
    """Say how the goals fared; the exit code. What was not asked for is not judged, and a
    quick run is no measurement."""
    everything = setup.with_vllm and not setup.only
    judged = [each for each in verdicts if everything or each.middle is not None]
    missed = [each for each in judged if not each.met]
    if setup.quick:
        notes.print("a quick run: nothing is judged")
        missed = []
    else:
        for each in judged:
            style = None if each.met else "bold red"
            notes.print(each.line, style=style, **PLAIN)
    for name in failures:
        notes.print(f"{name}: COULD NOT BE MEASURED", style="bold red")
    if missed:
        notes.print(f"{len(missed)} of {len(judged)} checks are not met", style="bold red")
    return 1 if missed or failures else 0


def _arguments(words: Sequence[str]) -> dict[str, Any]:
    """``NAME=JSON`` words as a mapping; what is not JSON is text."""
    found: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise click.BadParameter(f"{word!r} is not NAME=JSON", param_hint="--engine-arg")
        try:
            found[name.replace("-", "_")] = msgspec.json.decode(value)
        except msgspec.DecodeError:
            found[name.replace("-", "_")] = value
    return found


def _terminated(*_: object) -> NoReturn:
    """SIGTERM takes the way of an exception, so that the servers are stopped."""
    sys.exit(143)


if __name__ == "__main__":
    main()
