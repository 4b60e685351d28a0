"""Sends server-sent events: the hot end of every stream.

sse-starlette's response does the same with a task group, a ping task and a cancel scope
around every send; at thousands of tokens a second that costs more than the tokens
themselves. Here one loop sends, the connection says when the client has gone, and one timer
looks now and then whether the stream has gone silent or its reader has stalled.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable
from typing import Any, Generic, Protocol, TypeVar

from sse_starlette import ServerSentEvent
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from llmserve.errors import InternalError, LlmserveError
from llmserve.http.departure import Watching
from llmserve.http.outlet import Outlet
from llmserve.settings import ServerSettings

KEEP_ALIVE = ServerSentEvent(comment="keep-alive", sep="\n").encode()

Item = TypeVar("Item")
Written_contra = TypeVar("Written_contra", contravariant=True)

log = logging.getLogger(__name__)

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class ReaderStalled(Exception):
    """The client took nothing for too long, and was let go."""


class Wire(Protocol[Written_contra]):
    """How a protocol writes the items of a stream: whole events, as bytes."""

    def frame(self, item: Written_contra, /) -> bytes:
        """One item."""

    def end(self) -> bytes:
        """What follows the last item; it may be empty."""

    def error(self, error: LlmserveError, /) -> bytes:
        """What ends a stream that failed."""


class EventStream(Response, Generic[Item]):
    """Sends ``items``, the ``first`` of which (``None``: there is none) is asked for
    already. Closes them in any case: when the client goes away they are cancelled, which
    reaches the engine. A failure is an event, and the last one. Raises ``ReaderStalled``.
    Between the items, frames may come through ``outlet``."""

    def __init__(
        self,
        first: asyncio.Future[Item | None],
        items: AsyncGenerator[Item, None],
        wire: Wire[Item],
        outlet: Outlet,
        settings: ServerSettings,
    ) -> None:
        self.status_code = 200
        self.background = None
        self.raw_headers = _HEADERS
        self._first: asyncio.Future[Item | None] | None = first
        self._items = items
        self._wire = wire
        self._outlet = outlet
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        task = asyncio.current_task()
        assert task is not None
        others = task.cancelling()
        watch = _Watch(task, send, self._outlet, self._settings)
        try:
            with Watching(scope, receive, watch.end):
                try:
                    await watch.send(_head())
                    self._outlet.open()
                    await self._send_all(watch)
                finally:
                    await self._close()
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except asyncio.CancelledError:
            if watch.cancelled and task.uncancel() <= others:
                if watch.stalled:
                    raise ReaderStalled from None
                return
            raise
        finally:
            self._outlet.close()
            watch.close()

    async def _send_all(self, watch: _Watch) -> None:
        wire = self._wire
        coming: Awaitable[Item | None] | None = self._first
        while coming is not None:
            try:
                item = await coming
                frame = wire.end() if item is None else wire.frame(item)
                more = item is not None
            except LlmserveError as error:
                frame, more = wire.error(error), False
            except Exception:
                log.exception("a stream failed")
                frame, more = wire.error(InternalError()), False
            if frame:
                await watch.send(_part(frame))
            # An idle stream keeps neither what it has sent nor what that was made of.
            self._first, item, frame = None, None, b""
            coming = anext(self._items, None) if more else None

    async def _close(self) -> None:
        """End the items, and the wait for the first of them, if nobody has waited for it."""
        if self._first is not None and not self._first.done():
            self._first.cancel()
            await asyncio.wait({self._first})
        await self._items.aclose()


class _Watch:
    """What may end or interrupt a stream from outside."""

    __slots__ = (
        *("_keep_alive", "_loop", "_outlet", "_patience", "_period", "_ping", "_send"),
        *("_sending", "_since", "_task", "_timer", "cancelled", "stalled"),
    )

    def __init__(
        self, task: asyncio.Task[Any], send: Send, outlet: Outlet, settings: ServerSettings
    ) -> None:
        self.cancelled = False
        self.stalled = False
        self._task = task
        self._send = send
        self._outlet = outlet
        self._keep_alive = settings.keep_alive_s
        self._patience = settings.slow_reader_timeout_s
        self._loop = asyncio.get_running_loop()
        self._sending = False
        self._since = self._loop.time()
        self._ping: asyncio.Task[None] | None = None
        limits = [limit for limit in (self._keep_alive, self._patience) if limit]
        self._period = min(limits, default=0.0) / 2
        self._timer = self._loop.call_later(self._period, self._look) if limits else None

    async def send(self, message: Message) -> None:
        """Send the head or a frame, and remember when."""
        self._since, self._sending = self._loop.time(), True
        await self._send(message)
        self._sending = False

    def end(self) -> None:
        """The client has gone away, or is to be let go."""
        if not self.cancelled:
            self.cancelled = True
            self._task.cancel()

    def close(self) -> None:
        """Nothing is to be watched any more."""
        if self._timer is not None:
            self._timer.cancel()
        if self._ping is not None:
            self._ping.cancel()

    def _look(self) -> None:
        silent = self._loop.time() - max(self._since, self._outlet.sent_at)
        if self._sending and self._patience and silent >= self._patience:
            self.stalled = True
            self.end()
            return
        if not self._sending and self._keep_alive and silent >= self._keep_alive:
            self._ping = self._loop.create_task(self.send(_part(KEEP_ALIVE)))
        self._timer = self._loop.call_later(self._period, self._look)


def _head() -> Message:
    return {"type": "http.response.start", "status": 200, "headers": _HEADERS}


def _part(frame: bytes) -> Message:
    return {"type": "http.response.body", "body": frame, "more_body": True}
