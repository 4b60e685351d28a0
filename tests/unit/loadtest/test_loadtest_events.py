"""Reading a stream: which chunk counts, and what is no answer."""

from __future__ import annotations

import pytest
from loadtest_server import event

from llmserve.loadtest.events import AnswerStream, BadStream

ROLE = event(delta={"role": "assistant", "content": ""})
USAGE = 'data: {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 9}}\n\n'
DONE = "data: [DONE]\n\n"


def word(text: str, finish: str | None = None) -> str:
    return event(delta={"content": text}, finish_reason=finish)


def read(*pieces: tuple[float, str]) -> AnswerStream:
    stream = AnswerStream()
    for now, text in pieces:
        stream.feed(now, text.encode())
    return stream


def test_chunks_are_timed_and_tokens_are_taken_from_usage() -> None:
    stream = read((1.0, ROLE), (2.0, word("a")), (3.0, word("b")), (4.0, USAGE + DONE))
    assert list(stream.arrivals) == [2.0, 3.0]
    assert (stream.prompt_tokens, stream.output_tokens) == (3, 9)
    assert stream.done


def test_the_first_chunk_counts_when_it_says_something() -> None:
    for delta in (
        {"role": "assistant", "content": "a"},
        {"role": "assistant", "reasoning_content": "a"},
        {"role": "assistant", "content": None, "tool_calls": [{"index": 0}]},
        {"content": ""},
    ):
        assert list(read((1.0, event(delta=delta))).arrivals) == [1.0]
    assert list(read((1.0, event(text="a"))).arrivals) == [1.0]


def test_events_may_arrive_in_any_pieces() -> None:
    whole = (ROLE + word("naïve 🙂") + word("b") + USAGE + DONE).encode()
    for size in (1, 2, 3, 7, 64):
        stream = AnswerStream()
        for begin in range(0, len(whole), size):
            stream.feed(float(begin), whole[begin : begin + size])
        assert len(stream.arrivals) == 2
        assert stream.done
        assert stream.output_tokens == 9


def test_other_line_ends_comments_and_names_are_understood() -> None:
    text = ": ping\n\nevent: message\nid: 4\n" + word("a") + "retry: 5\n\n" + DONE
    stream = read((1.0, text.replace("\n", "\r\n")))
    assert list(stream.arrivals) == [1.0]
    assert stream.done


def test_counts_in_every_chunk_are_those_of_the_last() -> None:
    running = 'data: {"choices": [{"text": "a"}], "usage": {"completion_tokens": %d}}\n\n'
    assert read((1.0, running % 1), (2.0, running % 2)).output_tokens == 2


@pytest.mark.parametrize(
    "text",
    [
        'data: {"error": {"message": "it broke"}}\n\n',
        'event: error\ndata: {"detail": "it broke"}\n\n',
        "event: error\ndata: it broke\n\n",
    ],
)
def test_an_error_event_ends_the_answer(text: str) -> None:
    with pytest.raises(BadStream, match="it broke") as raised:
        read((1.0, word("a")), (2.0, text))
    assert raised.value.kind == "error event"


def test_an_error_that_is_null_is_none() -> None:
    assert list(read((1.0, 'data: {"choices": [{"text": "a"}], "error": null}\n\n')).arrivals) == [
        1.0
    ]


@pytest.mark.parametrize("text", ["data: hello\n\n", "data: [1]\n\n", 'data: {"choices": 3}\n\n'])
def test_what_is_no_chunk_is_no_answer(text: str) -> None:
    with pytest.raises(BadStream) as raised:
        read((1.0, text))
    assert raised.value.kind == "not a stream of chunks"


def test_an_event_without_end_is_given_up() -> None:
    stream = AnswerStream()
    for _ in range(16):
        stream.feed(1.0, b"x" * 1_000_000)
    with pytest.raises(BadStream, match="without end"):
        stream.feed(1.0, b"x" * 1_000_000)
