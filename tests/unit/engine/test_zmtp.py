"""Our end of a connection to a zmq socket, with real zmq at the other end."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("zmq")

import zmq
import zmq.asyncio

from llmserve.engine.vllm.zmtp import Message, Peer, ProtocolError

pytestmark = pytest.mark.anyio

SIZES = [0, 1, 254, 255, 256, 257, 65_535, 65_536, 1_000_000]


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": True}


class Ours:
    """A peer, and what it has been told."""

    def __init__(self, kind: bytes) -> None:
        self.messages: list[Message] = []
        self.came = asyncio.Event()
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self.peer = Peer(kind, self._received, self.lost.set_result)

    def _received(self, messages: list[Message]) -> None:
        self.messages += messages
        self.came.set()

    async def until(self, count: int) -> list[Message]:
        async with asyncio.timeout(20):
            while len(self.messages) < count:
                self.came.clear()
                await self.came.wait()
        return self.messages


@asynccontextmanager
async def connected(folder: Path, kind: bytes, theirs: int) -> AsyncIterator[tuple[Ours, Any]]:
    ours = Ours(kind)
    loop = asyncio.get_running_loop()
    server = await loop.create_unix_server(lambda: ours.peer, folder / "socket")
    with zmq.asyncio.Context() as context, context.socket(theirs) as socket:
        socket.linger = 0
        socket.connect(f"ipc://{folder / 'socket'}")
        try:
            yield ours, socket
        finally:
            ours.peer.close()
            server.close()


def some(sizes: list[int]) -> list[bytes]:
    return [random.randbytes(size) for size in sizes]  # noqa: S311  # any bytes


async def test_messages_of_all_sizes_come_as_they_were_sent(tmp_path: Path) -> None:
    async with connected(tmp_path, b"PULL", zmq.PUSH) as (ours, socket):
        sent = [some([size]) for size in SIZES] + [some(SIZES), some([0, 0]), some([3, 300, 0])]
        for message in sent:
            await socket.send_multipart(message)
        assert await ours.until(len(sent)) == sent
        assert all(type(message[0]) is bytes for message in ours.messages)
        assert all(type(frame) is bytearray for message in ours.messages for frame in message[1:])


async def test_messages_of_all_sizes_arrive_as_we_send_them(tmp_path: Path) -> None:
    async with connected(tmp_path, b"ROUTER", zmq.DEALER) as (ours, socket):
        await ours.peer.ready
        sent = [some([size]) for size in SIZES] + [some(SIZES), some([0, 0])]
        for message in sent:
            ours.peer.send([message[0], *map(memoryview, message[1:])])
        for message in sent:
            assert await socket.recv_multipart() == message
        await socket.send(b"and back")
        assert await ours.until(1) == [[b"and back"]]


@pytest.mark.parametrize("seed", range(20))
async def test_it_does_not_matter_where_the_bytes_are_cut(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)  # noqa: S311  # a schedule
    sent = [some([chance.choice([0, 1, 200, 255, 256, 3_000]) for _ in range(n)]) for n in (1, 3)]
    said = await recorded(tmp_path, sent)
    ours = Ours(b"PULL")
    transport = Written()
    ours.peer.connection_made(transport)
    while said:
        size = chance.choice([1, 2, 9, 64, 1_000])
        ours.peer.data_received(said[:size])
        said = said[size:]
    assert ours.peer.ready.done()
    assert ours.messages == sent
    assert not transport.aborted


async def test_a_peer_that_goes_is_told_once(tmp_path: Path) -> None:
    async with connected(tmp_path, b"PULL", zmq.PUSH) as (ours, socket):
        await ours.peer.ready
        socket.close()
        async with asyncio.timeout(20):
            assert await ours.lost is None


@pytest.mark.parametrize(
    "data", [bytes(64), b"GET / HTTP/1.1\r\nHost: localhost\r\n".ljust(64, b" ")]
)
async def test_who_does_not_speak_zmtp_is_let_go(data: bytes) -> None:
    ours, transport = Ours(b"PULL"), Written()
    ours.peer.connection_made(transport)
    ours.peer.data_received(data)
    assert transport.aborted
    assert isinstance(ours.lost.result(), ProtocolError)
    with pytest.raises(ProtocolError, match="not a greeting"):
        await ours.peer.ready


async def test_what_the_receiver_raises_ends_the_connection(tmp_path: Path) -> None:
    said = await recorded(tmp_path, [[b"one"], [b"two"]])
    error = ValueError("no")
    lost: list[Exception | None] = []

    def refuse(_: list[Message]) -> None:
        raise error

    peer, transport = Peer(b"PULL", refuse, lost.append), Written()
    peer.connection_made(transport)
    peer.data_received(said)
    peer.connection_lost(None)
    assert transport.aborted
    assert lost == [error]


async def recorded(folder: Path, messages: list[list[bytes]]) -> bytes:
    """What zmq says to send these."""
    said = bytearray()
    async with connected(folder, b"PULL", zmq.PUSH) as (ours, socket):
        take = ours.peer.data_received

        def tap(data: bytes) -> None:
            said.extend(data)
            take(data)

        ours.peer.data_received = tap  # type: ignore[method-assign]
        for message in messages:
            await socket.send_multipart(message)
        await ours.until(len(messages))
    return bytes(said)


class Written(asyncio.Transport):
    """A transport that goes nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.aborted = False

    def write(self, data: Any) -> None:
        """Nobody listens."""

    def abort(self) -> None:
        self.aborted = True

    def close(self) -> None:
        """There is nothing to close."""
