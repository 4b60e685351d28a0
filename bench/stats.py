"""Medians, ratios and /proc: functions without side effects."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that ``percent`` of all values do not exceed, interpolated linearly."""
    if not values:
        raise ValueError("no values")
    if not 0 <= percent <= 100:
        raise ValueError(f"{percent} is no percentage")
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below, above = math.floor(place), math.ceil(place)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


@dataclass(frozen=True, slots=True)
class Ratio:
    """Ours ÷ theirs, round by round: the median, the least and the greatest."""

    middle: float
    least: float
    greatest: float


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio | None:
    """Compare rounds in pairs: what disturbs the machine disturbs both of a pair. ``None``
    when there is nothing to compare with."""
    if len(ours) != len(theirs) or not ours or not all(theirs):
        return None
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return Ratio(median(ratios), min(ratios), max(ratios))


@dataclass(frozen=True, slots=True)
class ProcessStat:
    """What is used here of a line of ``/proc/PID/stat``: clock ticks and pages."""

    user_ticks: int
    system_ticks: int
    resident_pages: int


def parse_stat(line: str) -> ProcessStat:
    """Read such a line. The second field, the name, may hold spaces and parentheses."""
    fields = line[line.rindex(")") + 1 :].split()  # begins with the third field
    return ProcessStat(int(fields[11]), int(fields[12]), int(fields[21]))


def parse_cpu_model(cpuinfo: str) -> str:
    """The name of the first processor in ``/proc/cpuinfo``."""
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return "unknown"
