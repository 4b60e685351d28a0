"""What came back: text, tokens and the moment of the first text, of every dialect."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import msgspec

from bench.cases import Case, Dialect
from bench.client import BenchError, Reply


@dataclass(frozen=True, slots=True)
class Answer:
    """A response that was read and found complete. Times are seconds after the request.

    ``frames`` are those with text; ``first_text`` is when the first of them came, and
    ``gaps`` are the times between one and the next.
    """

    text: str
    tokens: int
    finish_reason: str
    frames: int
    first_text: float
    total: float
    gaps: tuple[float, ...] = ()

    @property
    def said(self) -> tuple[str, int, str]:
        """What has to be the same on every server."""
        return self.text, self.tokens, self.finish_reason


def read(case: Case, reply: Reply) -> Answer:
    """Read one reply. Raises ``BenchError`` unless it is what the case asked for: status
    200, no error, a proper end, and exactly as many tokens."""
    if reply.status != 200:
        raise BenchError(f"{case.key}: status {reply.status}: {reply.body[:500]!r}")
    answer = _read_stream(case, reply) if case.streaming else _read_json(case, reply)
    if answer.tokens != case.tokens or answer.finish_reason != "length":
        raise BenchError(
            f"{case.key}: {answer.tokens} tokens and {answer.finish_reason!r}, "
            f"not {case.tokens} and 'length'"
        )
    return answer


def _read_json(case: Case, reply: Reply) -> Answer:
    data = msgspec.json.decode(reply.body)
    choice = data["choices"][0]
    text = choice["message"]["content"] if case.dialect is Dialect.CHAT else choice["text"]
    took = reply.end - reply.begin
    tokens = data["usage"]["completion_tokens"]
    return Answer(text or "", tokens, choice["finish_reason"], 1, took, took)


def _read_stream(case: Case, reply: Reply) -> Answer:
    texts: list[str] = []
    tokens, finish, last = 0, "", b""
    arrivals: list[float] = []
    for at, data in _events(reply):
        last = data
        if data == b"[DONE]":
            continue
        frame = msgspec.json.decode(data)
        if "error" in frame:
            raise BenchError(f"{case.key}: the stream failed: {frame}")
        text, finish = _delta(case, frame, finish)
        if text:
            arrivals.append(at - reply.begin)
            texts.append(text)
        if frame.get("usage"):
            tokens = frame["usage"]["completion_tokens"]
    ended = b'"usage"' in last if case.dialect is Dialect.NATIVE else last == b"[DONE]"
    if not ended:
        raise BenchError(f"{case.key}: a stream without its end: {last[:200]!r}")
    first = arrivals[0] if arrivals else 0.0
    gaps = tuple(after - before for before, after in pairwise(arrivals))
    total = reply.end - reply.begin
    return Answer("".join(texts), tokens, finish, len(texts), first, total, gaps)


def _delta(case: Case, frame: dict[str, Any], finish: str) -> tuple[str, str]:
    """The text of a frame, and the finish reason as far as it is known."""
    if case.dialect is Dialect.NATIVE:
        return frame.get("text", ""), frame.get("finish_reason") or finish
    if not frame["choices"]:
        return "", finish
    choice = frame["choices"][0]
    text = choice["delta"].get("content") if case.dialect is Dialect.CHAT else choice["text"]
    return text or "", choice.get("finish_reason") or finish


def _events(reply: Reply) -> Iterator[tuple[float, bytes]]:
    """The ``data`` of each server-sent event, and when its last byte came."""
    pieces = iter(reply.pieces)
    at, end, received = reply.begin, 0, 0
    for line in reply.body.splitlines(keepends=True):
        end += len(line)
        while received < end:
            at, piece = next(pieces)
            received += len(piece)
        if line.startswith(b"data: "):
            yield at, line[6:].rstrip(b"\r\n")
