"""Values that the tests of the state share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from llmserve.state import ApiKey, Store, UsageRow
from llmserve.state.secrets import digest, new_key, new_key_id, shown_prefix
from llmserve.types import Limits, Outcome

Opener = Callable[[], Store]


def made_key(name: str = "alice", limits: Limits | None = None) -> tuple[ApiKey, str]:
    """A key, and its secret."""
    secret = new_key()
    prefix = shown_prefix(secret)
    key = ApiKey(new_key_id(), name, prefix, created_at=time.time(), limits=limits or Limits())
    return key, secret


def row(day: str = "2026-05-01", key_id: str = "k", count: int = 1) -> UsageRow:
    return UsageRow(day, key_id, "m", Outcome.COMPLETED, count, 10 * count, 4 * count, 7 * count)


def sha(text: str) -> bytes:
    return digest(text)


async def until(true: Callable[[], bool], seconds: float = 10) -> float:
    """Wait for it; return how long that took."""
    started = time.monotonic()
    while not true():
        assert time.monotonic() - started < seconds, "it did not happen in time"
        await asyncio.sleep(0.01)
    return time.monotonic() - started
