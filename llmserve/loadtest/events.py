"""Reading the event stream of a chat or text completion while it arrives.

Only what the figures need is read of a chunk, and no chunk is kept: this runs once for every
token of every stream, on the core that the server may want as well.
"""

from __future__ import annotations

from array import array
from typing import Any

import msgspec

_LARGEST_EVENT = 16 * 1024 * 1024


class BadStream(Exception):
    """What came is not the stream of an answer. ``kind`` is what is counted."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Chunk(msgspec.Struct):
    """Any chunk. Choices are looked into only until the first token has come."""

    choices: list[msgspec.Raw] | None = None
    usage: _Usage | None = None
    error: Any = None


class _Delta(msgspec.Struct):
    role: str | None = None
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: Any = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    finish_reason: str | None = None


_chunk = msgspec.json.Decoder(_Chunk)
_choice = msgspec.json.Decoder(_Choice)


class AnswerStream:
    """One answer. ``arrivals`` are the times of its chunks: every chunk that has a choice,
    but for the one that only names the role and comes before the first token."""

    def __init__(self) -> None:
        self.arrivals = array("d")
        self.prompt_tokens: int | None = None
        self.output_tokens: int | None = None
        self.done = False
        self._rest = b""

    def feed(self, now: float, data: bytes) -> None:
        """Take a piece of the body that arrived at ``now``. Raises ``BadStream`` for an
        error event and for what is no chunk."""
        # JSON holds no bare carriage return, so what is left out here only ends lines.
        if b"\r" in data:
            data = data.replace(b"\r", b"")
        *events, self._rest = (self._rest + data).split(b"\n\n")
        for event in events:
            self._take(now, event)
        if len(self._rest) > _LARGEST_EVENT:
            raise BadStream("not a stream of chunks", "an event without end")

    def _take(self, now: float, event: bytes) -> None:
        if event.startswith(b"data: ") and b"\n" not in event:
            name, data = b"", event[6:]
        else:
            name, data = _fields(event)
        if not data:
            return
        if data == b"[DONE]":
            self.done = True
            return
        try:
            chunk = _chunk.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            if name == b"error":
                raise BadStream("error event", _said(data)) from None
            raise BadStream("not a stream of chunks", _said(data)) from None
        if name == b"error" or chunk.error is not None:
            raise BadStream("error event", _said(data))
        if chunk.choices and (self.arrivals or not _names_role_only(chunk.choices[0])):
            self.arrivals.append(now)
        # Some servers count in every chunk: the last one says it all.
        if chunk.usage is not None:
            self.prompt_tokens = chunk.usage.prompt_tokens
            self.output_tokens = chunk.usage.completion_tokens


def _fields(event: bytes) -> tuple[bytes, bytes]:
    """Name and data of an event in full form. Comments have neither."""
    name, data = b"", []
    for line in event.split(b"\n"):
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            data.append(value)
        elif field == b"event":
            name = value
    return name, b"\n".join(data)


def _names_role_only(raw: msgspec.Raw) -> bool:
    try:
        choice = _choice.decode(raw)
    except msgspec.DecodeError:
        return False
    delta = choice.delta
    if delta is None or delta.role is None or choice.finish_reason is not None:
        return False
    said = (delta.content, delta.reasoning, delta.reasoning_content, delta.refusal)
    return not any(said) and not delta.tool_calls


def _said(data: bytes) -> str:
    return data[:300].decode("utf-8", "replace")
