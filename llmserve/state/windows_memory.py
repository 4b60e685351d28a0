"""Rate windows in the memory of this process."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from llmserve.state.windows import UNLIMITED, Grant, is_unlimited, refuse, standing, utc_day
from llmserve.types import Caller, Limits


@dataclass(slots=True)
class _Account:
    """What one caller has used. ``at``: when the buckets were last brought up to date;
    ``reserved``: tokens of the day that are set aside for requests under way."""

    at: float
    day: str
    requests_used: float = 0.0
    tokens_used: float = 0.0
    running: int = 0
    day_used: int = 0
    reserved: int = 0

    def advance(self, limits: Limits, now: float, day: str) -> None:
        """Let time pass: the buckets refill, a new day begins. A clock that was set back
        lets none pass."""
        passed = max(0.0, now - self.at)
        self.at = now
        self.requests_used = _refill(self.requests_used, limits.requests_per_minute, passed)
        self.tokens_used = _refill(self.tokens_used, limits.tokens_per_minute, passed)
        if self.day != day:
            self.day, self.day_used, self.reserved = day, 0, 0

    def refusal(self, limits: Limits, estimate: int) -> str | None:
        """The first limit that one more request would break. PostgreSQL's
        ``llmserve_take`` has the same rule."""
        per_day = limits.tokens_per_day
        needed = self.day_used + estimate
        if _over(self.requests_used + 1, limits.requests_per_minute):
            return "requests_per_minute"
        tokens = self.tokens_used + _clamped(estimate, limits.tokens_per_minute)
        if _over(tokens, limits.tokens_per_minute):
            return "tokens_per_minute"
        if _over(self.running + 1, limits.concurrency):
            return "concurrency"
        if _over(needed, per_day):
            return "tokens_per_day"
        return "reserved" if _over(needed + self.reserved, per_day) else None


class MemoryWindows:
    """Token buckets of one process. Memory grows with the number of keys that have limits,
    and with nothing else.

    ``spent``: tokens that keys have used of the UTC day ``day`` already, from the store,
    so that a restart does not begin the day anew. ``clock``: Unix seconds.
    """

    def __init__(
        self,
        spent: Mapping[str, int] | None = None,
        day: str = "",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        now = clock()
        self._accounts = {
            key_id: _Account(now, day, day_used=used) for key_id, used in (spent or {}).items()
        }
        self._day_number = -1
        self._day = ""

    async def open(self) -> None:
        """Nothing to begin."""

    async def take(self, caller: Caller, tokens: int) -> Grant:
        """See ``Windows.take``."""
        limits = caller.limits
        if is_unlimited(limits):
            return UNLIMITED
        account, now = self._account(caller.id, limits)
        which = account.refusal(limits, tokens)
        if which is not None:
            refuse(
                which,
                limits,
                estimate=tokens,
                requests_used=account.requests_used,
                tokens_used=account.tokens_used,
                day_used=account.day_used,
                now=now,
            )
        account.requests_used += 1
        account.tokens_used += _clamped(tokens, limits.tokens_per_minute)
        account.running += 1
        account.reserved += 0 if limits.tokens_per_day is None else tokens
        levels = standing(limits, account.requests_used, account.tokens_used)
        return Grant(caller.id, limits, levels, tokens, account.day)

    def settle(self, grant: Grant, tokens: int) -> None:
        """See ``Windows.settle``."""
        self._end(grant, tokens, returned=0)

    def cancel(self, grant: Grant) -> None:
        """See ``Windows.cancel``."""
        self._end(grant, 0, returned=1)

    async def aclose(self) -> None:
        """Nothing to finish."""

    def _end(self, grant: Grant, tokens: int, *, returned: int) -> None:
        """``returned``: how many requests go back into the bucket."""
        if grant.settled:
            return
        grant.settled = True
        limits = grant.limits
        account, _ = self._account(grant.caller_id, limits)
        taken = _clamped(grant.estimate, limits.tokens_per_minute)
        account.requests_used = max(0.0, account.requests_used - returned)
        account.tokens_used = max(0.0, account.tokens_used + tokens - taken)
        account.running -= 1
        account.day_used += tokens
        if grant.day == account.day:
            account.reserved -= 0 if limits.tokens_per_day is None else grant.estimate

    def _account(self, caller_id: str, limits: Limits) -> tuple[_Account, float]:
        now = self._clock()
        if now // 86_400 != self._day_number:
            self._day_number, self._day = int(now // 86_400), utc_day(now)
        account = self._accounts.get(caller_id)
        if account is None:
            account = self._accounts[caller_id] = _Account(now, self._day)
        account.advance(limits, now, self._day)
        return account, now


def _refill(used: float, limit: int | None, seconds: float) -> float:
    return 0.0 if limit is None else max(0.0, used - seconds * limit / 60)


def _clamped(estimate: int, limit: int | None) -> int:
    return estimate if limit is None else min(estimate, limit)


def _over(amount: float, limit: int | None) -> bool:
    return limit is not None and amount > limit
