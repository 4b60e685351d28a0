"""Sends server-sent events: the hot end of every stream.

sse-starlette's response does the same with a task group, a ping task and a cancel scope
around every send; at thousands of tokens a second that costs more than the tokens
themselves. Here one loop sends, the connection says when the client has gone, and one timer
looks now and then whether the stream has gone silent or its reader has stalled.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from sse_starlette import ServerSentEvent
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from llmserve.http.departure import Watching
from llmserve.http.outlet import Outlet
from llmserve.settings import ServerSettings

KEEP_ALIVE = ServerSentEvent(comment="keep-alive", sep="\n").encode()

_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}


class ReaderStalled(Exception):
    """The client took nothing for too long, and was let go."""


class EventStream(Response):
    """Sends ``frames``, each a whole event as bytes. Closes them in any case: when the
    client goes away they are cancelled, which reaches the engine. Raises
    ``ReaderStalled``. Between them, frames may come through ``outlet``."""

    def __init__(
        self, frames: AsyncGenerator[bytes, None], outlet: Outlet, settings: ServerSettings
    ) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers(_HEADERS)
        self._frames = frames
        self._outlet = outlet
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        task = asyncio.current_task()
        assert task is not None
        others = task.cancelling()
        watch = _Watch(task, send, self._outlet, self._settings)
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        try:
            with Watching(scope, receive, watch.end):
                async with aclosing(self._frames) as frames:
                    await send(start)
                    self._outlet.open()
                    async for frame in frames:
                        await watch.send(frame)
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


class _Watch:
    """What may end or interrupt a stream from outside."""

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
        self._pings: set[asyncio.Task[None]] = set()
        limits = [limit for limit in (self._keep_alive, self._patience) if limit]
        self._period = min(limits, default=0.0) / 2
        self._timer = self._loop.call_later(self._period, self._look) if limits else None

    async def send(self, frame: bytes) -> None:
        """Send one frame, and remember when."""
        self._since, self._sending = self._loop.time(), True
        await self._send({"type": "http.response.body", "body": frame, "more_body": True})
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
        for ping in self._pings:
            ping.cancel()

    def _look(self) -> None:
        silent = self._loop.time() - max(self._since, self._outlet.sent_at)
        if self._sending and self._patience and silent >= self._patience:
            self.stalled = True
            self.end()
            return
        if not self._sending and self._keep_alive and silent >= self._keep_alive:
            ping = self._loop.create_task(self.send(KEEP_ALIVE))
            self._pings.add(ping)
            ping.add_done_callback(self._pings.discard)
        self._timer = self._loop.call_later(self._period, self._look)
