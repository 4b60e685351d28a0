"""A part: whether ``llmserve bench`` measures what another load generator measures.

Both ask the same server in turns, over ``/v1/completions``. Its engine is scripted: it keeps a
pace, so that what differs is the tools' own.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from bench import models
from bench.cases import MODEL
from bench.client import BenchError
from bench.parts import Setup
from bench.scripted import start_scripted
from bench.values import OURS, THEIRS, Found, Value

KEY = "load generator"
PREFILL_SECONDS, SECONDS_PER_TOKEN = 0.2, 0.02
AT_ONCE, REQUESTS, QUICK_REQUESTS, TOKENS = 8, 64, 8, 64
TOOL_SECONDS = 300
FIGURES = {
    "request_throughput": "requests/s",
    "output_throughput": "tokens/s",
    "mean_ttft_ms": "TTFT mean ms",
    "median_ttft_ms": "TTFT p50 ms",
    "mean_tpot_ms": "TPOT mean ms",
    "p99_tpot_ms": "TPOT p99 ms",
    "median_itl_ms": "ITL p50 ms",
}
"""By their names in the JSON of both. Of tails the one that scatters little."""


class SecondTool:
    """``llmserve bench`` beside ``vllm bench serve``."""

    name = "llmserve bench beside vllm bench serve"

    def keys(self, setup: Setup) -> list[str]:
        """One thing, and only with vLLM."""
        return [KEY] if setup.with_vllm else []

    async def measure(self, setup: Setup) -> Found:
        """Both tools in turns, in an order that changes from round to round."""
        found = Found()
        tokenizer = models.tiny(setup.folder)
        server = start_scripted(
            SECONDS_PER_TOKEN, AT_ONCE, setup.folder, prefill_seconds=PREFILL_SECONDS
        )
        requests = QUICK_REQUESTS if setup.quick else REQUESTS
        result = setup.folder / "tool.json"
        commands = {
            OURS: _ours(server.port, requests, result),
            THEIRS: _theirs(server.port, requests, result, tokenizer),
        }
        try:
            server.wait_ready()
            for number in range(setup.rounds):
                order = list(commands) if number % 2 == 0 else list(reversed(commands))
                said = {}
                for name in order:
                    setup.say(f"round {number + 1}/{setup.rounds}: {KEY} of {name}")
                    said[name] = _run(commands[name], result)
                found.values += _values(number, _step(said[OURS]), said[THEIRS])
        finally:
            server.stop()
        return found


def _ours(port: int, requests: int, result: Path) -> list[str]:
    command = [sys.executable, "-m", "llmserve", "bench", "--url", f"http://127.0.0.1:{port}"]
    command += ["--model", MODEL, "--endpoint", "completions", "--ignore-eos", "--seed", "1"]
    command += ["--concurrency", str(AT_ONCE), "--requests", str(requests)]
    command += ["--prompt-tokens", str(TOKENS), "--output-tokens", str(TOKENS)]
    return [*command, "--json", str(result)]


def _theirs(port: int, requests: int, result: Path, tokenizer: Path) -> list[str]:
    command = [sys.executable, "-m", "bench.second_tool", "--backend", "openai"]
    command += ["--base-url", f"http://127.0.0.1:{port}", "--model", MODEL]
    command += ["--tokenizer", str(tokenizer), "--dataset-name", "random", "--ignore-eos"]
    command += ["--max-concurrency", str(AT_ONCE), "--num-prompts", str(requests)]
    command += ["--random-input-len", str(TOKENS), "--random-output-len", str(TOKENS)]
    command += ["--disable-tqdm", "--save-result", "--result-dir", str(result.parent)]
    return [*command, "--result-filename", result.name]


def _run(command: Sequence[str], result: Path) -> dict[str, Any]:
    """What a tool has written."""
    result.unlink(missing_ok=True)
    done = subprocess.run(command, capture_output=True, text=True, timeout=TOOL_SECONDS)  # noqa: S603
    if done.returncode or not result.exists():
        raise BenchError(f"{' '.join(command[:4])} failed: {(done.stdout + done.stderr)[-2000:]}")
    found: dict[str, Any] = msgspec.json.decode(result.read_bytes())
    return found


def _step(report: dict[str, Any]) -> dict[str, Any]:
    """The figures of the one step that ``llmserve bench`` was asked for."""
    (step,) = report["steps"]
    (figures,) = step["medians"].values()
    found: dict[str, Any] = figures
    return found


def _values(number: int, ours: dict[str, Any], theirs: dict[str, Any]) -> list[Value]:
    """Every figure by both tools, and the greatest difference."""
    found = []
    greatest = 0.0
    for name, shown in FIGURES.items():
        mine, other = float(ours[name]), float(theirs[name])
        found.append(Value(f"{KEY}: {shown}", OURS, number, mine, 2))
        found.append(Value(f"{KEY}: {shown}", THEIRS, number, other, 2))
        greatest = max(greatest, 100 * abs(mine / other - 1))
    return [*found, Value(f"{KEY}: greatest difference %", OURS, number, greatest, 1)]


def _main() -> None:
    """``vllm bench serve``, by its module: the console command of the CPU build does not
    start."""
    from vllm.benchmarks.serve import add_cli_args, main
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    main(parser.parse_args())


if __name__ == "__main__":
    _main()
