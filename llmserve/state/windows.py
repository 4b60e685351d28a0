"""Rate windows: how much of its limits a caller has used, and whether one more request fits.

Each per-minute limit is a token bucket (the generic cell rate algorithm in its meter
form): it holds the limit of one minute and refills evenly, a sixtieth of it a second. We
keep what is used rather than what is left, so that a caller without a bucket is one with a
full bucket, and a balance that went negative is just a larger number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NoReturn, Protocol

from llmserve.errors import QuotaExceeded, RateLimited
from llmserve.types import Caller, Limits

CONCURRENCY_RETRY_SECONDS = 1.0
"""When to come back for a place: nobody knows when the others end."""


@dataclass(frozen=True, slots=True)
class Level:
    """How far a per-minute bucket is used. ``reset_s``: seconds until it is full again."""

    limit: int
    remaining: int
    reset_s: float


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a caller stands with its per-minute limits; ``None``: it has no such limit."""

    requests: Level | None = None
    tokens: Level | None = None


@dataclass(slots=True, eq=False)
class Grant:
    """A request that was let in. Give it back with ``Windows.settle`` or ``cancel``, whatever
    becomes of the request. ``estimate`` are the tokens set aside for it, ``day`` the UTC day they
    were set aside on; ``lease`` names its place when that place is shared."""

    caller_id: str
    limits: Limits
    standing: Standing
    estimate: int
    day: str
    lease: str | None = None
    settled: bool = False


UNLIMITED = Grant("", Limits(), Standing(), 0, "", settled=True)
"""The grant of everybody who has no limits: there is nothing to give back."""


class LimitReached(RateLimited):
    """A limit per minute, or the number of requests at a time."""

    def __init__(self, message: str, standing: Standing, *, retry_after: float) -> None:
        super().__init__(message, retry_after=retry_after)
        self.standing = standing


class BudgetSpent(QuotaExceeded):
    """The tokens of the day."""

    def __init__(self, message: str, standing: Standing, *, retry_after: float) -> None:
        super().__init__(message, retry_after=retry_after)
        self.standing = standing


class Windows(Protocol):
    """The limits of all callers. For the event loop."""

    async def open(self) -> None:
        """Begin background work. Never fails: what cannot be reached is tried again."""
        ...

    async def take(self, caller: Caller, tokens: int) -> Grant:
        """Let a request in that may use so many prompt and completion tokens together.

        Checked in this order, and nothing is taken when one refuses: requests a minute,
        tokens a minute, concurrency, tokens a day. An estimate above the limit of a
        minute counts as that limit: such a request passes when nothing is used. A budget of
        a day is never overspent. Raises ``LimitReached``
        (a ``RateLimited``) and ``BudgetSpent`` (a ``QuotaExceeded``); ``retry_after`` is
        when the same request would pass if nobody else came.
        """
        ...

    def settle(self, grant: Grant, tokens: int) -> None:
        """The request has ended and has used so many tokens: charge those in place of the
        estimate (the balance may go negative) and free its place. Idempotent; never
        waits and never raises, so that it works where a cancelled task cleans up."""
        ...

    def cancel(self, grant: Grant) -> None:
        """The request was refused after all, before any work on it: give everything back,
        the request itself too. Otherwise as ``settle``; only the first of the two counts."""
        ...

    async def aclose(self) -> None:
        """Finish what ``settle`` and ``cancel`` have left to do, for a second at most."""
        ...


def is_unlimited(limits: Limits) -> bool:
    """Whether there is nothing to check. (Comparing with ``Limits()`` takes ten times as
    long, and most servers have no limits.)"""
    return (
        limits.requests_per_minute is None
        and limits.tokens_per_minute is None
        and limits.concurrency is None
        and limits.tokens_per_day is None
    )


def standing(limits: Limits, requests_used: float, tokens_used: float) -> Standing:
    """What is left of both buckets."""
    return Standing(
        _level(limits.requests_per_minute, requests_used),
        _level(limits.tokens_per_minute, tokens_used),
    )


def refuse(
    which: str,
    limits: Limits,
    *,
    estimate: int,
    requests_used: float,
    tokens_used: float,
    day_used: int,
    now: float,
) -> NoReturn:
    """Say no. ``which`` is the limit's field, or ``reserved``: the budget of the day would
    do, had not running requests set some of it aside. ``now``: Unix seconds."""
    where = standing(limits, requests_used, tokens_used)
    per_day = limits.tokens_per_day or 0
    if which == "tokens_per_day":
        raise BudgetSpent(
            f"You have {max(0, per_day - day_used)} of your {per_day} tokens for today left, and "
            f"this request may use {estimate}: a smaller max_tokens may do. The budget starts "
            "again at 00:00 UTC.",
            where,
            retry_after=86_400 - now % 86_400,
        )
    if which == "reserved":
        text = f"Your running requests may use up what is left of your {per_day} tokens for today."
        wait = CONCURRENCY_RETRY_SECONDS
    elif which == "concurrency":
        text = f"You have {limits.concurrency} requests at work, which is your limit."
        wait = CONCURRENCY_RETRY_SECONDS
    else:
        requests = which == "requests_per_minute"
        limit = (limits.requests_per_minute if requests else limits.tokens_per_minute) or 1
        used, cost = (requests_used, 1) if requests else (tokens_used, min(estimate, limit))
        wait = (used + cost - limit) * 60 / limit
        text = f"You have reached your limit of {limit} {which.replace('_', ' ')}."
    raise LimitReached(f"{text} Try again in {duration(wait)}.", where, retry_after=wait)


def utc_day(now: float) -> str:
    """The UTC day of a Unix time, as ``2026-12-31``."""
    return datetime.fromtimestamp(now, UTC).date().isoformat()


def ratelimit_headers(grant: Grant | LimitReached | BudgetSpent) -> dict[str, str]:
    """OpenAI's ``x-ratelimit-*`` headers, for an answer or for a refusal; only those of
    limits that the caller has."""
    headers = {}
    levels = (("requests", grant.standing.requests), ("tokens", grant.standing.tokens))
    for name, level in levels:
        if level is not None:
            headers[f"x-ratelimit-limit-{name}"] = str(level.limit)
            headers[f"x-ratelimit-remaining-{name}"] = str(level.remaining)
            headers[f"x-ratelimit-reset-{name}"] = duration(level.reset_s)
    return headers


def duration(seconds: float) -> str:
    """As OpenAI writes it, which is Go's way: ``20ms``, ``1s``, ``6m0s``. Rounded up, so
    that whoever waits that long has waited long enough."""
    if seconds <= 0:
        return "0s"
    milliseconds = math.ceil(seconds * 1000 - 1e-6)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(math.ceil(milliseconds / 1000), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{rest}s"
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"


def _level(limit: int | None, used: float) -> Level | None:
    if limit is None:
        return None
    # The small term: 4.999999 left after some arithmetic are 5.
    return Level(limit, max(0, math.floor(limit - used + 1e-6)), used * 60 / limit)
