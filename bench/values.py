"""Measured values, and what can be said about several rounds of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from bench.stats import Ratio, paired_ratio

OURS, THEIRS, BARE = "llmserve", "vllm", "bare engine"


@dataclass(frozen=True, slots=True)
class Value:
    """One figure of one server in one round. ``measure`` says what and in which unit, and is
    what goals refer to; ``digits`` is how many decimals are worth showing."""

    measure: str
    server: str
    round: int
    value: float
    digits: int = 1


@dataclass(slots=True)
class Found:
    """What a part of the benchmark has found: values, and notes about the run."""

    values: list[Value] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)

    def add(self, other: Found) -> None:
        """Take over what another part has found."""
        self.values += other.values
        self.notes |= other.notes


@dataclass(frozen=True, slots=True)
class Row:
    """One measure: medians of all rounds, and the ratio of the pairs."""

    measure: str
    digits: int
    ours: float | None
    theirs: float | None
    ratio: Ratio | None


def rounds(values: Iterable[Value], measure: str, server: str) -> list[float]:
    """The values of a measure on a server, in the order of the rounds."""
    mine = [value for value in values if (value.measure, value.server) == (measure, server)]
    return [value.value for value in sorted(mine, key=lambda value: value.round)]


def rows(values: Sequence[Value]) -> list[Row]:
    """One row for each measure, in the order in which they were found."""
    digits = {value.measure: value.digits for value in values}
    found = []
    for measure, shown in digits.items():
        ours, theirs = (rounds(values, measure, server) for server in (OURS, THEIRS))
        ratio = paired_ratio(ours, theirs)
        found.append(Row(measure, shown, _middle(ours), _middle(theirs), ratio))
    return found


def _middle(values: Sequence[float]) -> float | None:
    return median(values) if values else None
