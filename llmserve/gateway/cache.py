"""Answers to deterministic requests, given again to whoever asks exactly the same.

Off by default. Only what cannot come out differently is kept: greedy requests
(``temperature`` 0) and seeded ones. The key is everything that changes the answer: the
operation, model, version and adapter, the whole body, and the caller, unless answers are
shared on purpose. (The chat template and the weights are the version's.)
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec

from llmserve.engine.protocol import Json
from llmserve.settings import CacheSettings

T = TypeVar("T")

_PART_OF_CACHE = 8
"""No answer may be larger than this part of the whole cache."""
_WITHOUT_EFFECT = ("user", "metadata", "safety_identifier", "prompt_cache_key")


def cache_key(scope: tuple[str, ...], body: Json) -> bytes | None:
    """The key of a request, or ``None`` when its answer may differ from time to time.
    ``scope`` is what else the answer depends on."""
    greedy = body.get("temperature") == 0
    if not greedy and body.get("seed") is None:
        return None
    relevant = {name: body[name] for name in body if name not in _WITHOUT_EFFECT}
    return hashlib.sha256(msgspec.json.encode([scope, relevant], order="sorted")).digest()


@dataclass(frozen=True, slots=True)
class Kept(Generic[T]):
    """An answer: its items (one reply, or the events of a stream), the id of the request
    that it was made for, and what that request used."""

    items: tuple[T, ...]
    request_id: str
    prompt_tokens: int
    completion_tokens: int


class Flight(Generic[T]):
    """One request that looks for its answer: either ``kept`` is there, or the request
    makes the answer and calls ``keep``."""

    def __init__(self, kept: Kept[T] | None, keep: Callable[[Kept[T]], None]) -> None:
        self.kept = kept
        self.keep = keep


class Cache:
    """Bounded in bytes and age; the least recently used answer goes first."""

    def __init__(
        self,
        settings: CacheSettings,
        clock: Callable[[], float] = time.monotonic,
        *,
        max_waiting: int = 512,
        patience_s: float = 60.0,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._max_waiting = max_waiting
        self._patience = patience_s
        self._waiting = 0
        self._kept: OrderedDict[bytes, tuple[float, int, Kept[Any]]] = OrderedDict()
        self._flights: dict[bytes, asyncio.Future[None]] = {}
        self.bytes = 0
        self.hits = 0
        self.misses = 0

    @asynccontextmanager
    async def flight(self, key: bytes) -> AsyncIterator[Flight[Any]]:
        """Find the answer, waiting for whoever is making it at this moment. When that one
        fails or goes away, the next in line makes it. Where too many wait, or one has waited
        too long (the maker's client may read slowly), each goes its own way."""
        while (kept := self._find(key)) is None and (ahead := self._flights.get(key)) is not None:
            if not await self._wait(ahead):
                break
        if kept is not None:
            self.hits += 1
            yield Flight(kept, lambda _: None)
            return
        self.misses += 1
        if key in self._flights:
            yield Flight(None, lambda _: None)
            return
        landed = self._flights[key] = asyncio.get_running_loop().create_future()
        try:
            yield Flight(None, lambda answer: self._keep(key, answer))
        finally:
            del self._flights[key]
            landed.set_result(None)

    async def _wait(self, ahead: asyncio.Future[None]) -> bool:
        """Wait for somebody else's answer. ``False``: not any longer."""
        if self._waiting >= self._max_waiting:
            return False
        self._waiting += 1
        try:
            async with asyncio.timeout(self._patience):
                await asyncio.shield(ahead)
        except TimeoutError:
            return False
        finally:
            self._waiting -= 1
        return True

    def _find(self, key: bytes) -> Kept[Any] | None:
        found = self._kept.get(key)
        if found is None:
            return None
        kept_at, _, kept = found
        age = self._settings.max_age_s
        if age and self._clock() - kept_at > age:
            self._drop(key)
            return None
        self._kept.move_to_end(key)
        return kept

    def _keep(self, key: bytes, answer: Kept[Any]) -> None:
        size = len(msgspec.json.encode(answer.items)) + len(key)
        if size * _PART_OF_CACHE > self._settings.max_bytes:
            return
        self._drop(key)
        self._kept[key] = (self._clock(), size, answer)
        self.bytes += size
        while self.bytes > self._settings.max_bytes:
            self._drop(next(iter(self._kept)))

    def _drop(self, key: bytes) -> None:
        found = self._kept.pop(key, None)
        if found is not None:
            self.bytes -= found[1]
