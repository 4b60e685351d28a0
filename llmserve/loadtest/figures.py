"""Latencies, rates and goodput: pure functions of what came back.

The definitions are those of ``vllm bench serve`` (vllm/benchmarks/serve.py, 0.32), so that
figures can be put side by side: see ``docs/bench.md``. All times are seconds.
"""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from llmserve.errors import ConfigError

Metric = Literal["ttft", "tpot", "itl", "e2el"]
METRICS: tuple[Metric, ...] = ("ttft", "tpot", "itl", "e2el")

_OBJECTIVE = re.compile(r"(ttft|tpot|itl|e2el?):(\d+(?:\.\d+)?)(ms|s)?")
_ITL_PERCENT = 99


@dataclass(slots=True)
class Record:
    """What became of one request. Times are of ``time.perf_counter``.

    ``due`` is when it should have begun: its time in the schedule of an open loop, and
    ``sent`` in a closed one. Latencies count from there, so that waiting for a client or
    a server that is behind is not left out ("coordinated omission"). ``arrivals`` are the
    times of the chunks of the answer; token counts are the server's own, ``None`` when it
    gave none. ``failure`` is a short kind, ``None`` when the answer is complete.
    """

    index: int
    due: float
    sent: float = 0.0
    asked_tokens: int = 0
    arrivals: Sequence[float] = ()
    end: float = 0.0
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    failure: str | None = None
    detail: str = ""

    @property
    def ttft(self) -> float:
        """Time to the first chunk of the answer."""
        return self.arrivals[0] - self.due

    @property
    def e2el(self) -> float:
        """Time to the last chunk of the answer."""
        return self.arrivals[-1] - self.due

    @property
    def tpot(self) -> float | None:
        """Time per output token after the first; ``None`` for fewer than two tokens."""
        if not self.output_tokens or self.output_tokens < 2:
            return None
        return (self.arrivals[-1] - self.arrivals[0]) / (self.output_tokens - 1)

    @property
    def itl(self) -> list[float]:
        """Gaps between one chunk and the next."""
        return [after - before for before, after in pairwise(self.arrivals)]


@dataclass(frozen=True, slots=True)
class Spread:
    """How a latency is distributed."""

    count: int
    mean: float
    median: float
    p90: float
    p99: float
    most: float
    quantiles: tuple[float, ...] = field(repr=False, default=())
    """At 0, 1, … 100 %, for plots."""


@dataclass(frozen=True, slots=True)
class Figures:
    """One step of one round on one server. ``seconds`` run from the begin of the step to
    the end of its last request, failed ones included. Tokens are ``None`` when the server
    did not count them; ``good`` are the requests that met all objectives, ``None`` without
    any."""

    seconds: float
    completed: int
    failures: Mapping[str, int]
    prompt_tokens: int | None
    output_tokens: int | None
    latencies: Mapping[Metric, Spread]
    good: int | None = None

    @property
    def failed(self) -> int:
        """Requests without a complete answer."""
        return sum(self.failures.values())

    @property
    def attained(self) -> float | None:
        """Share of all requests, failed ones included, that met all objectives."""
        if self.good is None:
            return None
        return self.good / max(self.completed + self.failed, 1)

    def flat(self) -> dict[str, float | None]:
        """Every figure under the name that ``vllm bench serve`` gives it in its JSON."""
        into = self.prompt_tokens
        out = self.output_tokens
        figures: dict[str, float | None] = {
            "duration": self.seconds,
            "completed": self.completed,
            "failed": self.failed,
            "total_input_tokens": into,
            "total_output_tokens": out,
            "request_throughput": self._rate(self.completed),
            "request_goodput": self._rate(self.good),
            "slo_attainment": self.attained,
            "output_throughput": self._rate(out),
            "total_token_throughput": self._rate(None if None in (into, out) else into + out),  # type: ignore[operator]
        }
        for metric, spread in self.latencies.items():
            figures |= {
                f"mean_{metric}_ms": spread.mean * 1000,
                f"median_{metric}_ms": spread.median * 1000,
                f"p90_{metric}_ms": spread.p90 * 1000,
                f"p99_{metric}_ms": spread.p99 * 1000,
                f"max_{metric}_ms": spread.most * 1000,
            }
        return figures

    def _rate(self, count: float | None) -> float | None:
        return None if count is None else count / self.seconds


@dataclass(frozen=True, slots=True)
class Objective:
    """A bound on a latency of a request (SLO)."""

    metric: Metric
    seconds: float

    def met(self, record: Record) -> bool:
        """Whether a completed request kept it. A request with one chunk has no gaps and
        keeps any bound on them; ``itl`` bounds the 99th percentile of a request's gaps."""
        match self.metric:
            case "tpot":
                return (record.tpot or 0.0) <= self.seconds
            case "itl":
                gaps = record.itl
                return not gaps or percentile(sorted(gaps), _ITL_PERCENT) <= self.seconds
        return float(getattr(record, self.metric)) <= self.seconds

    def __str__(self) -> str:
        return f"{self.metric} ≤ {self.seconds * 1000:g} ms"


def parse_objective(text: str, option: str) -> Objective:
    """Read ``ttft:500ms``, ``e2el:2s`` or ``tpot:50`` (milliseconds). Raises ``ConfigError``."""
    found = _OBJECTIVE.fullmatch(text)
    if found is None or not float(found[2]):
        raise ConfigError(
            f"{option}: {text!r} is not allowed; allowed: ttft, tpot, itl or e2el with a time "
            f"greater than 0, as ttft:500ms or e2el:2s."
        )
    metric: Metric = {"ttft": "ttft", "tpot": "tpot", "itl": "itl"}.get(found[1], "e2el")  # type: ignore[assignment]
    return Objective(metric, float(found[2]) * (1 if found[3] == "s" else 0.001))


def figures(
    records: Sequence[Record], begin: float, objectives: Sequence[Objective] = ()
) -> Figures:
    """Sum up one step that began at ``begin``. Failed requests are counted, and nothing
    else of them counts."""
    done = [each for each in records if each.failure is None]
    end = max((each.end for each in records), default=begin)
    values: dict[Metric, list[float]] = {
        "ttft": [each.ttft for each in done],
        "tpot": [each.tpot for each in done if each.tpot is not None],
        "itl": [gap for each in done for gap in each.itl],
        "e2el": [each.e2el for each in done],
    }
    return Figures(
        seconds=max(end - begin, 1e-9),
        completed=len(done),
        failures=Counter(each.failure for each in records if each.failure is not None),
        prompt_tokens=_total([each.prompt_tokens for each in done]),
        output_tokens=_total([each.output_tokens for each in done]),
        latencies={metric: spread(each) for metric, each in values.items() if each},
        good=sum(all(o.met(each) for o in objectives) for each in done) if objectives else None,
    )


def spread(values: Sequence[float]) -> Spread:
    """The distribution of at least one value."""
    ordered = sorted(values)
    return Spread(
        count=len(ordered),
        mean=statistics.fmean(ordered),
        median=percentile(ordered, 50),
        p90=percentile(ordered, 90),
        p99=percentile(ordered, 99),
        most=ordered[-1],
        quantiles=tuple(percentile(ordered, percent) for percent in range(101)),
    )


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The value that ``percent`` of the ascending values do not exceed, interpolated
    linearly, as numpy does by default."""
    place = (len(ordered) - 1) * percent / 100
    below, above = math.floor(place), math.ceil(place)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def _total(counts: Sequence[int | None]) -> int | None:
    """The sum; ``None`` as soon as one is unknown."""
    known = [each for each in counts if each is not None]
    return sum(known) if len(known) == len(counts) else None
