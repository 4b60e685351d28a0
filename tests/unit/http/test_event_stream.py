"""The end of a stream whose head has not gone out: the client before it on the same
connection reads nothing, so that the head waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from llmserve.errors import LlmserveError
from llmserve.http.event_stream import EventStream, ReaderStalled
from llmserve.http.lent import Lent, lend
from llmserve.http.outlet import Outlet
from llmserve.settings import ServerSettings

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Words:
    """Writes words as they are."""

    def frame(self, item: str) -> bytes:
        return item.encode()

    def end(self) -> bytes:
        return b""

    def error(self, error: LlmserveError) -> bytes:
        return error.message.encode()


class Held:
    """A stream whose engine has no token yet, on a connection that takes nothing."""

    def __init__(self, **settings: float) -> None:
        self.closed = False
        self.sending: list[str] = []
        self.begun = asyncio.Event()
        self.scope: dict[str, Any] = {"type": "http", "state": {}}
        self.lent = Lent(cast(Any, SimpleNamespace()), lambda: None)
        lend(self.scope, self.lent)
        items = self._items()
        self.stream = EventStream(
            asyncio.ensure_future(anext(items, None)),
            items,
            Words(),
            Outlet(self.scope),
            ServerSettings(**cast(dict[str, Any], settings)),
        )

    async def _items(self) -> AsyncGenerator[str, None]:
        try:
            await asyncio.get_running_loop().create_future()
            yield "never"
        finally:
            self.closed = True

    async def _send(self, message: Any) -> None:
        self.sending.append(message["type"])
        self.begun.set()
        await asyncio.get_running_loop().create_future()

    async def answer(self) -> None:
        """Send it."""
        await self.stream(self.scope, cast(Any, None), self._send)


async def test_a_client_that_leaves_frees_the_engine_at_once() -> None:
    held = Held()
    task = asyncio.ensure_future(held.answer())
    await held.begun.wait()
    held.lent.lose()
    await asyncio.wait_for(task, 5)
    assert held.closed
    assert held.sending == ["http.response.start"]


async def test_one_that_takes_nothing_is_let_go() -> None:
    held = Held(slow_reader_timeout_s=0.1, keep_alive_s=0.05)
    with pytest.raises(ReaderStalled):
        await asyncio.wait_for(held.answer(), 5)
    assert held.closed
    assert held.sending == ["http.response.start"], "no comment overtakes the head"
