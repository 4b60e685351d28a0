"""From an engine's stream to a response, by the stream rule:

* the status is honest: the first item is awaited, for a bounded time, before any header;
* after the first byte a failure is an error event and nothing after it;
* a silent stream is kept open with comments, a stalled reader is let go;
* a client that goes away takes its request with it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, TypeVar

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.requests import Request
from starlette.responses import Response

from llmserve.errors import InternalError, LlmserveError
from llmserve.settings import ServerSettings

log = logging.getLogger(__name__)

T = TypeVar("T")

_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


class ClientGone(Exception):
    """The client went away before its response began; there is nobody to tell."""


async def stream_response(
    frames: AsyncGenerator[Any, None],
    on_error: Callable[[LlmserveError], Any],
    settings: ServerSettings,
) -> Response:
    """A response that sends ``frames`` (bytes, or ``ServerSentEvent``).

    Raises what ``frames`` raises within ``first_chunk_wait_s``; later errors go through
    ``on_error`` and end the stream.
    """
    first = asyncio.ensure_future(anext(frames, None))
    try:
        await asyncio.wait({first}, timeout=settings.first_chunk_wait_s)
        if first.done():
            first.result()
    except BaseException:
        first.cancel()
        await frames.aclose()
        raise
    return EventSourceResponse(
        _body(first, frames, on_error),
        headers=_HEADERS,
        ping=settings.keep_alive_s,
        ping_message_factory=lambda: ServerSentEvent(comment="keep-alive", sep="\n"),
        send_timeout=settings.slow_reader_timeout_s or None,
        sep="\n",
    )


async def _body(
    first: asyncio.Future[Any],
    frames: AsyncGenerator[Any, None],
    on_error: Callable[[LlmserveError], Any],
) -> AsyncGenerator[Any, None]:
    try:
        frame = await first
        while frame is not None:
            yield frame
            frame = await anext(frames, None)
    except LlmserveError as error:
        yield on_error(error)
    except Exception:
        log.exception("a stream failed")
        yield on_error(InternalError())
    finally:
        await frames.aclose()


async def until_disconnect(request: Request, work: Awaitable[T]) -> T:
    """The result of ``work``, which is cancelled when the client goes away first (then
    this raises ``ClientGone``). The request body must have been read."""
    task = asyncio.ensure_future(work)
    watcher = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        watcher.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait({task})


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
