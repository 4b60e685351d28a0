"""Ending a request from outside: by one of its deadlines, or because somebody stops it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from typing import Any, Generic, TypeVar

from llmserve.errors import DeadlineExceeded, LlmserveError, QueueTimeout

T = TypeVar("T")


class Deadline:
    """Bounds every wait of one request.

    ``seconds`` until its end, of which ``spent`` have passed already; ``None`` means no
    limit. ``stop`` ends the wait at once with an error of the caller's choice. Either way
    the engine's iterator is closed, which aborts the request there. ``close`` it in the end.

    One timer for each request, and none for each token: ``asyncio.timeout`` around every
    wait would cost a stream more than sending its tokens does.
    """

    __slots__ = ("_ended", "_loop", "_timer", "_waiting")

    def __init__(self, seconds: float | None, spent: float = 0.0) -> None:
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._ended: LlmserveError | None = None
        self._waiting: asyncio.Task[Any] | None = None
        sentence = "The request took longer than the limit of"
        self.tighten(seconds, DeadlineExceeded, sentence, spent)

    def close(self) -> None:
        """The request has ended; idempotent."""
        if self._timer is not None:
            self._timer.cancel()

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
        if self._timer is None or at < self._timer.when():
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(at, self._expire, kind, sentence, seconds)

    def _expire(self, kind: type[DeadlineExceeded], sentence: str, seconds: float) -> None:
        self.stop(kind(f"{sentence} {seconds:g} s."))

    def stop(self, error: LlmserveError) -> None:
        """End the request with ``error``; the first call counts."""
        if self._ended is None:
            self._ended = error
            if self._waiting is not None:
                self._waiting.cancel()

    async def wait(self, awaitable: Awaitable[T]) -> T:
        """Await it, within the deadline. Raises ``DeadlineExceeded``, or what ``stop``
        was given."""
        task = asyncio.current_task()
        assert task is not None
        if self._ended is not None:
            if asyncio.iscoroutine(awaitable):
                awaitable.close()
            raise self._ended
        others = task.cancelling()
        self._waiting = task
        try:
            return await awaitable
        except asyncio.CancelledError:
            # Ours becomes our error; that of somebody else goes on.
            if self._ended is not None and task.uncancel() <= others:
                raise self._ended from None
            raise
        finally:
            self._waiting = None

    async def wait_for_turn(self, turn: asyncio.Future[None], seconds: float | None) -> None:
        """Await a place in the engine, for so many seconds at most. Raises
        ``QueueTimeout``, and what ``wait`` raises."""
        if turn.done() and self._ended is None:
            return
        timer = None
        if seconds is not None:
            sentence = "The request waited for its turn longer than the limit of"
            error = QueueTimeout(f"{sentence} {seconds:g} s.")
            timer = self._loop.call_later(seconds, self.stop, error)
        try:
            await self.wait(turn)
        finally:
            if timer is not None:
                timer.cancel()

    def guard(self, items: AsyncGenerator[T, None]) -> Guarded[T]:
        """``items``, each wait for one of them within the deadline."""
        return Guarded(self, items)


class Guarded(Generic[T]):
    """The items of a generator under a deadline, which are closed at the end of its block.

    A class, because an idle stream would pay for one more generator.
    """

    __slots__ = ("_deadline", "_items")

    def __init__(self, deadline: Deadline, items: AsyncGenerator[T, None]) -> None:
        self._deadline = deadline
        self._items = items

    def __aiter__(self) -> Guarded[T]:
        return self

    def __anext__(self) -> Awaitable[T]:
        return self._deadline.wait(anext(self._items))

    async def __aenter__(self) -> Guarded[T]:
        return self

    async def __aexit__(self, *_: object) -> None:
        await _close(self._items)


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
