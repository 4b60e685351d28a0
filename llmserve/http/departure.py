"""Learning that a client has gone away, while its request is being worked on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from starlette.requests import Request
from starlette.types import Receive, Scope

T = TypeVar("T")


class ClientGone(Exception):
    """The client went away before its response began; there is nobody to tell."""


@contextmanager
def watching(scope: Scope, receive: Receive, gone: Callable[[], None]) -> Iterator[None]:
    """For the time of this block, call ``gone`` when the client goes away. The body of the
    request must have been read.

    The server that runs us (``connection.Connection``) tells it by a call; under another
    one a task waits for the message that ASGI has for it.
    """
    state = scope.get("state", {})
    if "on_gone" not in state:
        listening = asyncio.ensure_future(_until_gone(receive))
        listening.add_done_callback(lambda task: None if task.cancelled() else gone())
        try:
            yield
        finally:
            listening.cancel()
        return
    state["on_gone"] = gone
    if state.get("gone"):
        gone()
    try:
        yield
    finally:
        state["on_gone"] = None


async def until_gone(request: Request, work: Awaitable[T]) -> T:
    """The result of ``work``, which is cancelled when the client goes away first: raises
    ``ClientGone`` then."""
    task = asyncio.current_task()
    assert task is not None
    others, left = task.cancelling(), False

    def leave() -> None:
        nonlocal left
        if not left:
            left = True
            task.cancel()

    with watching(request.scope, request.receive, leave):
        try:
            return await work
        except asyncio.CancelledError:
            if left and task.uncancel() <= others:
                raise ClientGone from None
            raise


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
