"""Medians over rounds, and ratios between two servers: pure functions."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Flat = Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class Ratio:
    """First ÷ second server, round by round: the median, the least and the greatest."""

    middle: float
    least: float
    greatest: float


def medians(rounds: Sequence[Flat]) -> dict[str, float]:
    """The median of each figure over the rounds. A figure that one round lacks is left out:
    a median over other rounds than its neighbours would not be comparable."""
    names = [name for name in rounds[0] if all(each.get(name) is not None for each in rounds)]
    return {name: statistics.median(_values(rounds, name)) for name in names}


def ratios(ours: Sequence[Flat], theirs: Sequence[Flat]) -> dict[str, Ratio]:
    """Compare rounds in pairs: what disturbs the machine disturbs both of a pair. Figures
    that are missing or zero on one side have no ratio."""
    found = {}
    for name in medians(ours):
        above, below = _values(ours, name), _values(theirs, name)
        if len(above) == len(below) and all(below) and all(above):
            each = [a / b for a, b in zip(above, below, strict=True)]
            found[name] = Ratio(statistics.median(each), min(each), max(each))
    return found


def _values(rounds: Sequence[Flat], name: str) -> list[float]:
    return [value for each in rounds if (value := each.get(name)) is not None]
