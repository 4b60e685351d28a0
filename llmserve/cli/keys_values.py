"""What the options of ``llmserve keys`` accept."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import TypeVar

import click

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@:+-]{0,63}")
_RESERVED = re.compile(r"anonymous|static-.*|key-.*")
_DURATION = re.compile(r"(\d{1,9})([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_LONGEST_SECONDS = 100 * 366 * 86_400

T = TypeVar("T")


def _reader(read: Callable[[str], T | None], allowed: str) -> Callable[[str], T]:
    """What click calls with the text of an option; ``read`` returns ``None`` for what it
    does not accept."""

    def convert(text: str) -> T:
        value = read(text.strip())
        if value is None:
            raise click.BadParameter(f"{text[:100]!r} is not allowed; it must be {allowed}.")
        return value

    return convert


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


def _count(text: str) -> int | None:
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= 15 else 0
    return number or None


def _weight(text: str) -> float | None:
    try:
        weight = float(text)
    except ValueError:
        return None
    return weight if math.isfinite(weight) and 0.01 <= weight <= 100 else None


key_name = _reader(
    _name,
    "up to 64 letters, digits and _.@:+- (and neither 'anonymous' nor begin with 'key-' or "
    "'static-', which are taken)",
)
count = _reader(_count, "a whole number, 1 or more, of at most 15 digits")
duration = _reader(_duration, "a number with s, m, h, d or w, such as 24h")
expiry = _reader(_expiry, "such as 30d or 12h, or a day to come such as 2026-12-31")
day = _reader(_day, "a day such as 2026-12-31")
weight = _reader(_weight, "a number from 0.01 to 100")
