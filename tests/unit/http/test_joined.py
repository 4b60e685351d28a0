"""Head and body of a response leave together, and neither is ever kept."""

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


async def test_head_and_body_are_one_write_and_what_follows_is_not_delayed() -> None:
    joined = Joined(wire := Wire())
    joined.write(b"head ")
    assert wire.writes == []
    joined.write(b"body")
    assert wire.writes == [b"head body"]
    joined.write(b"more")
    assert wire.writes == [b"head body", b"more"]
    await asyncio.sleep(0)
    assert wire.writes == [b"head body", b"more"]


async def test_a_head_alone_waits_for_no_more_than_a_turn() -> None:
    joined = Joined(wire := Wire())
    joined.write(b"head")
    await asyncio.sleep(0)
    assert wire.writes == [b"head"]
    joined.write(b"body")
    assert wire.writes == [b"head", b"body"]


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
