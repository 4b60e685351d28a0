"""What a response writes in one turn leaves together, and nothing is ever kept."""

from __future__ import annotations

import asyncio

import pytest

from llmserve.http.joined import Joined

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Wire(asyncio.Transport):
    """What was written, write by write."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:  # type: ignore[override]
        assert not self.closed
        self.writes.append(data)

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True


async def test_what_is_written_in_one_turn_is_one_write() -> None:
    joined = Joined(wire := Wire())
    for part in (b"head ", b"body ", b"end"):
        joined.write(part)
        assert wire.writes == []
    await asyncio.sleep(0)
    assert wire.writes == [b"head body end"]
    joined.write(b"more")
    await asyncio.sleep(0)
    assert wire.writes == [b"head body end", b"more"]


async def test_what_is_written_now_does_not_overtake_and_does_not_wait() -> None:
    joined = Joined(wire := Wire())
    joined.write(b"head ")
    joined.write_now(b"first")
    joined.write_now(b"second")
    assert wire.writes == [b"head first", b"second"]
    joined.write(b"end")
    await asyncio.sleep(0)
    assert wire.writes == [b"head first", b"second", b"end"]


async def test_closing_sends_what_was_written() -> None:
    joined = Joined(wire := Wire())
    joined.write(b"head")
    joined.close()
    assert wire.writes == [b"head"]
    assert joined.is_closing()
    await asyncio.sleep(0)
    assert wire.writes == [b"head"]


async def test_a_client_that_has_gone_is_sent_nothing() -> None:
    joined = Joined(wire := Wire())
    joined.write(b"head")
    wire.close()
    await asyncio.sleep(0)
    assert wire.writes == []


async def test_closing_without_a_word_is_only_closing() -> None:
    joined = Joined(wire := Wire())
    assert not joined.is_closing()
    joined.close()
    assert (wire.writes, wire.closed) == ([], True)
