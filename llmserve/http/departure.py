"""Learning that a client has gone away, while its request is being worked on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from starlette.requests import Request
from starlette.types import Receive, Scope

from llmserve.http.lent import lent_to

T = TypeVar("T")


class ClientGone(Exception):
    """The client went away before its response began; there is nobody to tell."""


class Watching:
    """For the time of this block, call ``gone`` when the client goes away. The body of the
    request must have been read.

    The server that runs us (``connection.Connection``) tells it by a call; under another
    one a task waits for the message that ASGI has for it.
    """

    __slots__ = ("_gone", "_lent", "_listening", "_receive")

    def __init__(self, scope: Scope, receive: Receive, gone: Callable[[], None]) -> None:
        self._lent = lent_to(scope)
        self._receive = receive
        self._gone = gone
        self._listening: asyncio.Task[None] | None = None

    def __enter__(self) -> None:
        gone, lent = self._gone, self._lent
        if lent is None:
            self._listening = asyncio.ensure_future(_until_gone(self._receive))
            self._listening.add_done_callback(lambda task: None if task.cancelled() else gone())
            return
        lent.on_gone = gone
        if lent.gone:
            gone()

    def __exit__(self, *_: object) -> None:
        if self._lent is not None:
            self._lent.on_gone = None
        elif self._listening is not None:
            self._listening.cancel()


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

    with Watching(request.scope, request.receive, leave):
        try:
            return await work
        except asyncio.CancelledError:
            if left and task.uncancel() <= others:
                raise ClientGone from None
            raise


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
