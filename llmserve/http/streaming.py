"""From an engine's stream to a response, by the stream rule:

* the status is honest: the first item is awaited, for a bounded time, before any header;
* after the first byte a failure is an error event and nothing after it;
* a silent stream is kept open with comments, a stalled reader is let go;
* a client that goes away takes its request with it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from llmserve.errors import InternalError, LlmserveError
from llmserve.gateway.entry import Entry
from llmserve.http.departure import until_gone
from llmserve.http.event_stream import EventStream
from llmserve.http.outlet import Outlet
from llmserve.settings import ServerSettings

log = logging.getLogger(__name__)

_QUICK = 0.05
"""A request that has its place this soon is not worth a watcher of its connection."""


async def stream_response(
    request: Request,
    frames: AsyncGenerator[bytes, None],
    outlet: Outlet,
    on_error: Callable[[LlmserveError], bytes],
    account: Entry,
    settings: ServerSettings,
) -> Response:
    """A response that sends ``frames``, each a whole event, and lets others through
    ``outlet`` once it has begun.

    No header goes out before the request has its place, however long it waits for that.
    Raises what ``frames`` raises until ``first_chunk_wait_s`` after; later errors go
    through ``on_error`` and end the stream.
    """
    placed = account.placed = asyncio.get_running_loop().create_future()
    first = asyncio.ensure_future(anext(frames, None))
    try:
        await _either(request, first, placed)
        await asyncio.wait({first}, timeout=settings.first_chunk_wait_s)
        if first.done():
            first.result()
    except BaseException:
        first.cancel()
        await asyncio.wait({first})
        await frames.aclose()
        raise
    return EventStream(_body(first, frames, on_error), outlet, settings)


async def _either(
    request: Request, first: asyncio.Future[Any], placed: asyncio.Future[None]
) -> None:
    """Wait for the first frame or for the place, whichever comes first. Raises
    ``ClientGone`` when the client does not wait as long."""
    await asyncio.wait({first, placed}, timeout=_QUICK, return_when=asyncio.FIRST_COMPLETED)
    if first.done() or placed.done():
        return
    await until_gone(request, asyncio.wait({first, placed}, return_when=asyncio.FIRST_COMPLETED))


async def _body(
    first: asyncio.Future[bytes | None],
    frames: AsyncGenerator[bytes, None],
    on_error: Callable[[LlmserveError], bytes],
) -> AsyncGenerator[bytes, None]:
    try:
        frame = await first
        if frame is not None:
            yield frame
            async for frame in frames:
                yield frame
    except LlmserveError as error:
        yield on_error(error)
    except Exception:
        log.exception("a stream failed")
        yield on_error(InternalError())
    finally:
        await frames.aclose()
