"""Ending a request from outside: by one of its deadlines, or because somebody stops it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from llmserve.errors import DeadlineExceeded, LlmserveError, QueueTimeout

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Bound:
    """A moment (of the event loop's clock) and what passing it means."""

    at: float
    error: Callable[[], LlmserveError]


class Deadline:
    """Bounds every wait of one request.

    ``seconds`` until its end, of which ``spent`` have passed already; ``None`` means no
    limit. ``stop`` ends the wait at once with an error of the caller's choice. Either way the engine's iterator is
    closed, which aborts the request there.
    """

    def __init__(self, seconds: float | None, spent: float = 0.0) -> None:
        self._loop = asyncio.get_running_loop()
        self._bound: _Bound | None = None
        self._scope: asyncio.Timeout | None = None
        sentence = "The request took longer than the limit of"
        self.tighten(seconds, DeadlineExceeded, sentence, spent)

    def tighten(
        self,
        seconds: float | None,
        kind: type[DeadlineExceeded],
        sentence: str,
        spent: float = 0.0,
    ) -> None:
        """From now on, no longer than this; ``kind`` and ``sentence`` (the number follows)
        are the error of it."""
        if seconds is None:
            return
        at = self._loop.time() + max(0.0, seconds - spent)
        if self._bound is None or at < self._bound.at:
            self._bound = _Bound(at, lambda: kind(f"{sentence} {seconds:g} s."))

    def stop(self, error: LlmserveError) -> None:
        """End the request with ``error``."""
        now = self._loop.time()
        if self._bound is None or now < self._bound.at:
            self._bound = _Bound(now, lambda: error)
            if self._scope is not None and not self._scope.expired():
                self._scope.reschedule(now)

    async def wait(self, awaitable: Awaitable[T]) -> T:
        """Await it, within the deadline. Raises ``DeadlineExceeded``, or what ``stop``
        was given."""
        try:
            async with asyncio.timeout_at(self._bound.at if self._bound else None) as self._scope:
                return await awaitable
        except TimeoutError as error:
            if self._bound is None:
                raise
            raise self._bound.error() from error
        finally:
            self._scope = None

    async def wait_for_turn(self, turn: asyncio.Future[None], seconds: float | None) -> None:
        """Await a place in the engine, for so many seconds at most. Raises
        ``QueueTimeout``, and what ``wait`` raises."""
        own = self._bound
        sentence = "The request waited for its turn longer than the limit of"
        self.tighten(seconds, QueueTimeout, sentence)
        tightened = self._bound
        await self.wait(turn)
        if self._bound is tightened:
            self._bound = own

    async def guard(self, items: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
        """Yield from ``items``, each wait within the deadline; close them in any case."""
        try:
            while True:
                try:
                    item = await self.wait(anext(items))
                except StopAsyncIteration:
                    return
                yield item
        finally:
            await _close(items)


async def _close(items: AsyncGenerator[Any, None]) -> None:
    """Close an iterator although the task that reads it is being cancelled: the abort
    must reach the engine."""
    closing = asyncio.ensure_future(items.aclose())
    try:
        await asyncio.shield(closing)
    except asyncio.CancelledError:
        closing.add_done_callback(_retrieve)
        raise


def _retrieve(task: asyncio.Future[None]) -> None:
    if not task.cancelled():
        task.exception()
