"""What the options of ``llmserve keys`` accept."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any

import click

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@:+-]{0,63}")
_RESERVED = re.compile(r"anonymous|static-.*|key-.*")
_DURATION = re.compile(r"(\d{1,9})([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_LONGEST_SECONDS = 100 * 366 * 86_400


class Value(click.ParamType):
    """A type made of a function that returns the value, or ``None`` for what it does not
    accept."""

    def __init__(self, name: str, allowed: str, read: Callable[[str], Any]) -> None:
        self.name = name
        self._allowed = allowed
        self._read = read

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if not isinstance(value, str):
            return value
        result = self._read(value.strip())
        if result is None:
            self.fail(f"{value[:100]!r} is not allowed; it must be {self._allowed}.", param, ctx)
        return result


class Day(Value):
    """A UTC day."""

    def __init__(self) -> None:
        super().__init__("day", "a day such as 2026-12-31", _day)


def today() -> date:
    """The UTC day."""
    return datetime.now(UTC).date()


def _name(text: str) -> str | None:
    return text if _NAME.fullmatch(text) and not _RESERVED.fullmatch(text) else None


def _duration(text: str) -> float | None:
    found = _DURATION.fullmatch(text)
    seconds = int(found[1]) * _SECONDS[found[2]] if found else 0
    return float(seconds) if 0 < seconds <= _LONGEST_SECONDS else None


def _expiry(text: str) -> float | None:
    """Unix seconds. A day means its end, as on a ticket."""
    seconds, day, now = _duration(text), _day(text), time.time()
    if seconds is not None:
        return now + seconds
    if day is None or day == date.max:
        return None
    end = datetime.combine(day + timedelta(days=1), datetime.min.time(), UTC).timestamp()
    return end if end > now else None


def _day(text: str) -> date | None:
    try:
        return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC).date()
    except ValueError:
        return None


def _weight(text: str) -> float | None:
    try:
        weight = float(text)
    except ValueError:
        return None
    return weight if math.isfinite(weight) and 0.01 <= weight <= 100 else None


KEY_NAME = Value(
    "name",
    "up to 64 letters, digits and _.@:+- (and neither 'anonymous' nor begin with 'key-' or "
    "'static-', which are taken)",
    _name,
)
DURATION = Value("time", "a number with s, m, h, d or w, such as 24h", _duration)
EXPIRY = Value("when", "such as 30d or 12h, or a day to come such as 2026-12-31", _expiry)
WEIGHT = Value("weight", "a number from 0.01 to 100", _weight)
