"""What a run has measured, and what can be said of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llmserve.loadtest.calibrate import Scale
from llmserve.loadtest.compare import Ratio, medians, ratios
from llmserve.loadtest.figures import Figures, Record
from llmserve.loadtest.plan import Plan
from llmserve.loadtest.selfwatch import Cost


@dataclass(frozen=True, slots=True)
class Sample:
    """One step on one server in one round."""

    target: int
    level: float
    round: int
    figures: Figures
    cost: Cost
    warnings: Mapping[str, str]
    begin: float
    records: Sequence[Record]


@dataclass(frozen=True, slots=True)
class Result:
    """Everything that was measured. ``urls`` and ``models`` are in the order of the plan's
    addresses; ``scale`` is what calibration found; ``seconds`` the time it all took."""

    plan: Plan
    urls: tuple[str, ...]
    models: tuple[str, ...]
    scale: Scale
    samples: tuple[Sample, ...]
    seconds: float

    def at(self, target: int, level: float) -> list[Sample]:
        """All rounds of a step on a server."""
        return [each for each in self.samples if each.target == target and each.level == level]

    def medians(self, target: int, level: float) -> dict[str, float]:
        """The median of each figure over the rounds of a step."""
        return medians([each.figures.flat() for each in self.at(target, level)])

    def ratios(self, level: float) -> dict[str, Ratio]:
        """First ÷ second server; nothing when there is one."""
        ours, theirs = ([s.figures.flat() for s in self.at(t, level)] for t in (0, 1))
        return ratios(ours, theirs) if theirs else {}

    def warnings(self) -> list[str]:
        """One warning of each kind, the first, and how many steps had it."""
        found: dict[str, list[str]] = {}
        for each in self.samples:
            where = f"{self.plan.load.kind} loop at {each.level:g}, server {'AB'[each.target]}"
            for kind, text in each.warnings.items():
                found.setdefault(kind, []).append(f"{where}: {text}")
        more = {kind: len(texts) - 1 for kind, texts in found.items()}
        return [
            texts[0] + (f" The same in {more[kind]} more steps." if more[kind] else "")
            for kind, texts in found.items()
        ]

    def missed(self) -> list[float]:
        """Levels at which the first server did not meet the objectives for the share of
        requests that the plan requires, by the median of the rounds."""
        require = self.plan.require
        if require is None:
            return []
        levels = self.plan.load.levels
        return [each for each in levels if self.medians(0, each)["slo_attainment"] < require]

    def best(self, share: float) -> float | None:
        """The highest level at which the first server met the objectives for that share of
        the requests, all lower levels included."""
        best = None
        for level in sorted(self.plan.load.levels):
            if self.medians(0, level).get("slo_attainment", 0.0) < share:
                break
            best = level
        return best
