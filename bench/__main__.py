"""``python -m bench``: the command line."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click
import msgspec
import uvloop
from rich.console import Console

from bench.cases import Case, cases, chosen
from bench.client import BenchError
from bench.report import frames_per_token, machine, rows, table, waiting_share, write_json
from bench.runner import Sample, compare_answers, run_rounds
from bench.servers import ENGINE, Server, running

WIDTH = 110


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1))
@click.option("--quick", is_flag=True, help="One round of few tokens: does it run at all?")
@click.option(
    "--engine",
    type=click.Choice(["vllm", "fake"]),
    default="vllm",
    show_default=True,
    help="With 'fake', llmserve is measured alone, and its engine runs in the same process.",
)
@click.option("--only", multiple=True, metavar="WORD", help="Cases with this in their name.")
@click.option(
    "--engine-arg",
    "extra",
    multiple=True,
    metavar="NAME=JSON",
    help="An engine argument for both servers, such as gpu_memory_utilization=0.3.",
)
@click.option(
    "--json",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write everything to this file, in bench/results/ say.",
)
def main(
    rounds: int, quick: bool, engine: str, only: Sequence[str], extra: Sequence[str], path: Path
) -> None:
    """Measure llmserve and vLLM's own server side by side, on a tiny random model."""
    signal.signal(signal.SIGTERM, _terminated)
    console, notes = Console(), Console(stderr=True)
    console.width = max(console.width, WIDTH)
    asked = chosen(cases(quick=quick), only)
    if not asked:
        raise click.BadParameter(f"no case has any of {', '.join(only)} in its name")
    rounds = 1 if quick else rounds
    load = [os.getloadavg()[0]]
    try:
        with tempfile.TemporaryDirectory() as folder:
            model = _tiny(Path(folder)) if engine == "vllm" else None
            notes.print("starting")
            with running(engine, model, _arguments(extra), Path(folder)) as servers:
                notes.print("ready")
                samples, about = uvloop.run(_measure(servers, asked, rounds, notes))
    except BenchError as error:
        notes.print(f"bench: {error}", style="red", markup=False, highlight=False)
        sys.exit(1)
    load.append(os.getloadavg()[0])
    about |= {"load_average": load, "machine": machine(), "engine": engine}
    lines = rows(samples, asked)
    console.print(table(lines, rounds))
    for name, value in about.items():
        console.print(f"{name}: {value}", soft_wrap=True, markup=False, highlight=False)
    if path is not None:
        about["engine_arguments"] = ENGINE | _arguments(extra)
        write_json(path, samples, lines, about)


async def _measure(
    servers: Sequence[Server], asked: Sequence[Case], rounds: int, notes: Console
) -> tuple[list[Sample], dict[str, Any]]:
    compared = await compare_answers(servers, asked)
    samples = await run_rounds(servers, asked, rounds, notes.print)
    return samples, {
        "rounds": rounds,
        "equal_answers": compared,
        "waiting_server_share_of_a_core": waiting_share(samples),
        "text_frames_per_token": frames_per_token(samples),
    }


def _tiny(folder: Path) -> Path:
    """The random one-layer model of the tests, with the demo model's tokenizer."""
    from llmserve.provision.resolve import resolve_model
    from tests.models import tiny_model

    return tiny_model(Path(resolve_model("demo").path), folder / "tiny")


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
