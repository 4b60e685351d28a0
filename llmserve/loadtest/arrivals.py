"""When requests are due: pure functions of their arguments and a seed. Times are seconds
from the begin of a step."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Literal

from llmserve.errors import ConfigError

Pattern = Literal["poisson", "even"]

_MOST_STEPS = 100
_MOST_LEVEL = 100_000
_MOST_ARRIVALS = 1_000_000


def arrivals(
    pattern: Pattern,
    rate: float,
    *,
    seconds: float | None,
    requests: int | None,
    rng: random.Random,
) -> list[float]:
    """The times of one open-loop step, ascending: as many as fall within ``seconds``, and
    no more than ``requests``. Gaps of a Poisson process are exponential with the mean
    ``1 / rate``; even ones are all alike and begin with a request at 0."""
    most = _MOST_ARRIVALS if requests is None else requests
    due: list[float] = []
    for time in _times(pattern, rate, rng):
        if len(due) == most or (seconds is not None and time >= seconds):
            return due
        due.append(time)
    raise AssertionError("the times have no end")


def _times(pattern: Pattern, rate: float, rng: random.Random) -> Iterator[float]:
    time, count = 0.0, 0
    while True:
        if pattern == "poisson":
            time += rng.expovariate(rate)
        else:
            time = count / rate
        yield time
        count += 1


def parse_steps(text: str, option: str, *, whole: bool) -> tuple[float, ...]:
    """The load of each step: ``8``, ``1,2,4`` or ``FIRST:LAST:STEP``, the last one included.
    ``whole``: only whole numbers are allowed. Raises ``ConfigError``."""
    try:
        values = _range(text) if ":" in text else [float(each) for each in text.split(",")]
    except ValueError:
        values = []
    allowed = all(0 < each <= _MOST_LEVEL and not (whole and each % 1) for each in values)
    if not values or not allowed or len(values) > _MOST_STEPS:
        kind = "whole numbers" if whole else "numbers"
        raise ConfigError(
            f"{option}: {text!r} is not allowed; allowed: {kind} greater than 0, at most "
            f"{_MOST_LEVEL}, as 8, 1,2,4 or FIRST:LAST:STEP, in {_MOST_STEPS} steps at most."
        )
    return tuple(values)


def _range(text: str) -> list[float]:
    first, last, step = (float(each) for each in text.split(":"))
    if not (math.isfinite(first + last + step) and 0 < first <= last and step > 0):
        return []
    # Half a millionth of a step for what decimal fractions lose.
    count = int((last - first) / step + 1e-6) + 1
    return [first + index * step for index in range(min(count, _MOST_STEPS + 1))]
