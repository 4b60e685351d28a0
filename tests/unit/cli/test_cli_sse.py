"""Server-sent events, in whatever pieces they arrive."""

from __future__ import annotations

import pytest

from llmserve.cli.sse import SseEvent, read_events

STREAM = (
    ": keep-alive\n\n"
    "id: 1\nevent: token\ndata: {\"text\": \"a\u2028b\x85c\"}\n\n"
    "data:two\r\ndata: lines\r\n\r\n"
    "event: empty\n\n"
    "data: 日本\r\r"
    "data: cut off"
).encode()  # fmt: skip

EVENTS = [
    SseEvent("token", '{"text": "a\u2028b\x85c"}'),
    SseEvent("message", "two\nlines"),
    SseEvent("message", "日本"),
]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 1000])
def test_events_do_not_depend_on_the_pieces(size: int) -> None:
    pieces = [STREAM[i : i + size] for i in range(0, len(STREAM), size)]
    assert list(read_events(pieces)) == EVENTS


def test_nothing_gives_nothing() -> None:
    assert list(read_events([])) == []
    assert list(read_events([b"", b"\n\n", b":\n"])) == []
