"""Reading server-sent events (the WHATWG format) from a stream of bytes.

httpx's own ``iter_lines`` splits at every Unicode line end, U+2028 among them, which may
stand inside the JSON of an event; here only CR, LF and CRLF end a line.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_LINE_END = re.compile(r"\r\n|\n|\r")


@dataclass(frozen=True, slots=True)
class SseEvent:
    """One event: its name (``message`` when it was sent without) and its data."""

    name: str
    data: str


def read_events(chunks: Iterable[bytes]) -> Iterator[SseEvent]:
    """The events of a stream. An event that is cut off by its end is dropped."""
    name = ""
    data: list[str] = []
    for line in _lines(chunks):
        if not line:
            if data:
                yield SseEvent(name or "message", "\n".join(data))
            name, data = "", []
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            data.append(value)
        elif field == "event":
            name = value


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    rest = ""
    for chunk in chunks:
        rest += decoder.decode(chunk)
        # A CR at the end may be the first half of a CRLF: it waits for the next chunk.
        whole = rest[:-1] if rest.endswith("\r") else rest
        lines = _LINE_END.split(whole)
        rest = lines.pop() + rest[len(whole) :]
        yield from lines
