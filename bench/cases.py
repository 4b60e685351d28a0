"""What is asked of a server: routes, bodies, how many streams at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import msgspec

MODEL = "tiny"


class Dialect(StrEnum):
    """The shape of bodies and replies; the value is the route."""

    CHAT = "/v1/chat/completions"
    COMPLETION = "/v1/completions"
    NATIVE = "/generate"


@dataclass(frozen=True, slots=True)
class Case:
    """``streams`` requests at once, until ``requests`` have been answered with exactly
    ``tokens`` tokens each."""

    name: str
    dialect: Dialect
    streams: int
    requests: int
    tokens: int
    streaming: bool = True

    @property
    def key(self) -> str:
        """What tells this case from the others."""
        return f"{self.name} c={self.streams}"

    @property
    def ours_only(self) -> bool:
        """True for routes that vLLM has not."""
        return self.dialect is Dialect.NATIVE

    def payload(self, number: int, port: int) -> bytes:
        """The HTTP request with this number, complete."""
        path = self.dialect.value
        if self.dialect is Dialect.NATIVE and self.streaming:
            path += "/stream"
        content = msgspec.json.encode(self.body(number))
        head = (
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        return head.encode() + content

    def body(self, number: int) -> dict[str, Any]:
        """Greedy, of a fixed length: the same number gives the same text everywhere."""
        prompt = f"Request {number}. Tell me a long story about a lighthouse and the sea."
        body: dict[str, Any] = {
            "model": MODEL,
            "max_tokens": self.tokens,
            "temperature": 0,
            "ignore_eos": True,
        }
        if self.dialect is Dialect.COMPLETION:
            body["prompt"] = prompt
        else:
            body["messages"] = [{"role": "user", "content": prompt}]
        if self.streaming and self.dialect is not Dialect.NATIVE:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return body


def cases(*, quick: bool) -> list[Case]:
    """All cases. The long ones give each server half a CPU second or so to spend: CPU time
    is counted in hundredths of a second."""
    requests, tokens, short = (8, 8, 16) if quick else (128, 96, 640)
    levels = (4, 8) if quick else (16, 64)
    found = [
        Case(name, dialect, streams, requests, tokens)
        for name, dialect in (
            ("chat stream", Dialect.CHAT),
            ("completions stream", Dialect.COMPLETION),
            ("native stream", Dialect.NATIVE),
        )
        for streams in levels
    ]
    one_token = [
        Case(name, dialect, levels[0], short, 1, streaming=False)
        for name, dialect in (
            ("chat one token", Dialect.CHAT),
            ("completions one token", Dialect.COMPLETION),
        )
    ]
    return found + one_token


def chosen(everything: Sequence[Case], only: Sequence[str]) -> list[Case]:
    """The cases whose key contains one of the words of ``only``; all, without words."""
    return [case for case in everything if not only or any(word in case.key for word in only)]
