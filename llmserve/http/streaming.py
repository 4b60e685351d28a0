"""From an engine's stream to a response, by the stream rule:

* the status is honest: the first item is awaited, for a bounded time, before any header;
* after the first byte a failure is an error event and nothing after it;
* a silent stream is kept open with comments, a stalled reader is let go;
* a client that goes away takes its request with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from llmserve.gateway.entry import Entry
from llmserve.http.departure import until_gone
from llmserve.http.event_stream import EventStream, Item, Wire
from llmserve.http.outlet import Outlet
from llmserve.settings import ServerSettings

_QUICK = 0.05
"""A request that has its place this soon is not worth a watcher of its connection."""


async def stream_response(
    request: Request,
    items: AsyncGenerator[Item, None],
    wire: Wire[Item],
    outlet: Outlet,
    account: Entry,
    settings: ServerSettings,
) -> Response:
    """A response that sends ``items`` as ``wire`` writes them, and lets frames through
    ``outlet`` once it has begun.

    No header goes out before the request has its place, however long it waits for that.
    Raises what ``items`` raises until ``first_chunk_wait_s`` after; later errors are
    events, and end the stream.
    """
    placed = account.placed = asyncio.get_running_loop().create_future()
    first = asyncio.ensure_future(anext(items, None))
    try:
        await _either(request, first, placed)
        await asyncio.wait({first}, timeout=settings.first_chunk_wait_s)
        if first.done():
            first.result()
    except BaseException:
        first.cancel()
        await asyncio.wait({first})
        await items.aclose()
        raise
    finally:
        account.placed = None
    return EventStream(first, items, wire, outlet, settings)


async def _either(
    request: Request, first: asyncio.Future[Any], placed: asyncio.Future[None]
) -> None:
    """Wait for the first frame or for the place, whichever comes first. Raises
    ``ClientGone`` when the client does not wait as long."""
    await asyncio.wait({first, placed}, timeout=_QUICK, return_when=asyncio.FIRST_COMPLETED)
    if first.done() or placed.done():
        return
    await until_gone(request, asyncio.wait({first, placed}, return_when=asyncio.FIRST_COMPLETED))
