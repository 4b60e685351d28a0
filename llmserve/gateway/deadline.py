"""Ending a request from outside: by its deadline, or because the server stops it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from typing import Any, TypeVar

from llmserve.errors import DeadlineExceeded, LlmserveError

T = TypeVar("T")


class Deadline:
    """Bounds every wait of one request for its engine.

    ``seconds`` ``None`` means no limit. ``stop`` ends the wait at once with an error of
    the caller's choice. Either way the engine's iterator is closed, which aborts the
    request there.
    """

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._at = None if seconds is None else asyncio.get_running_loop().time() + seconds
        self._error: LlmserveError | None = None
        self._scope: asyncio.Timeout | None = None

    def stop(self, error: LlmserveError) -> None:
        """End the request with ``error``; the first call counts."""
        if self._error is None:
            self._error = error
            self._at = asyncio.get_running_loop().time()
            if self._scope is not None and not self._scope.expired():
                self._scope.reschedule(self._at)

    async def wait(self, awaitable: Awaitable[T]) -> T:
        """Await it, within the deadline. Raises ``DeadlineExceeded``, or what ``stop``
        was given."""
        try:
            async with asyncio.timeout_at(self._at) as self._scope:
                return await awaitable
        except TimeoutError as error:
            raise self._error or self._exceeded() from error
        finally:
            self._scope = None

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

    def _exceeded(self) -> DeadlineExceeded:
        return DeadlineExceeded(f"The request took longer than the limit of {self._seconds:g} s.")


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
