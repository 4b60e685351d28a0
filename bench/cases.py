"""What is asked of a server: routes, bodies, how many streams at once."""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import msgspec

MODEL = "bench"
"""The name under which every model is served."""

WORDS = ("the", "sea", "stone", "lamp", "garden", "window", "table", "morning", "letter")
"""Of the demo model's tokenizer, each is one token."""


class Dialect(StrEnum):
    """The shape of bodies and replies; the value is the route."""

    CHAT = "/v1/chat/completions"
    COMPLETION = "/v1/completions"
    NATIVE = "/generate"


@dataclass(frozen=True, slots=True)
class Case:
    """``streams`` requests at once, until ``requests`` have been answered with exactly
    ``tokens`` tokens each. ``step``: seconds that a step of the paced engine takes;
    ``words``: by how much the prompt is longer than a sentence; ``turns``: in how many parts
    the requests are sent, after each of which it is the other server's turn."""

    name: str
    dialect: Dialect
    streams: int
    requests: int
    tokens: int
    streaming: bool = True
    step: float = 0.0
    words: int = 0
    turns: int = 1

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
        if self.words:
            chance = random.Random(number)  # noqa: S311  # a text
            prompt = " ".join([prompt, *chance.choices(WORDS, k=self.words)])
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
        if self.step:
            body["seed"] = round(self.step * 1e6)  # read by paced_engine
        if self.streaming and self.dialect is not Dialect.NATIVE:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return body


def tiny_cases(*, quick: bool) -> list[Case]:
    """On the tiny model. The long ones give each server half a CPU second or so to spend: CPU
    time is counted in hundredths of a second. Few streams take several turns: the machine's
    speed drifts by more within seconds than what is to be seen."""
    tokens = 8 if quick else 96
    chat = {1: (12, 4), 8: (48, 2), 16: (128, 1), 32: (96, 1), 64: (128, 1)}
    found = [
        _stream("chat stream", Dialect.CHAT, streams, *((0, 1) if quick else sent), tokens)
        for streams, sent in chat.items()
    ]
    found += [
        _stream(name, dialect, streams, 0 if quick else 128, 1, tokens)
        for name, dialect in (
            ("completions stream", Dialect.COMPLETION),
            ("native stream", Dialect.NATIVE),
        )
        for streams in (16, 64)
    ]
    return found + [
        Case(name, dialect, 16, 16 if quick else 640, 1, streaming=False)
        for name, dialect in (
            ("chat one token", Dialect.CHAT),
            ("completions one token", Dialect.COMPLETION),
        )
    ]


def demo_cases(*, quick: bool) -> list[Case]:
    """On the demo model: a user's throughput, where the engine has real work. All streams of
    a level begin and end together; where one wave is short there are two, in turns."""
    tokens, waves = (4, 1) if quick else (64, 2)
    return [
        Case("demo chat stream", Dialect.CHAT, streams, streams * many, tokens, turns=many)
        for streams, many in ((1, waves), (8, waves), (32, 1), (64, 1))
    ]


def paced_cases(*, quick: bool) -> list[Case]:
    """On the paced engine, whose steps take what they take on a GPU: 6,400 tokens/s, twice as
    many, 256 streams, and as many as the engine's scheduler makes."""
    tokens, waves = (8, 1) if quick else (192, 3)
    return [
        Case(name, dialect, streams, waves * streams, tokens, step=step)
        for name, dialect, streams, step in (
            ("paced chat stream 10 ms", Dialect.CHAT, 64, 0.01),
            ("paced chat stream 5 ms", Dialect.CHAT, 64, 0.005),
            ("paced completions stream 5 ms", Dialect.COMPLETION, 64, 0.005),
            ("paced chat stream 20 ms", Dialect.CHAT, 256, 0.02),
            ("unpaced chat stream", Dialect.CHAT, 64, 0.0),
        )
    ]


def prompt_cases(*, quick: bool) -> list[Case]:
    """On the paced engine, where only the front ends work for a prompt: documents and long
    conversations, all different, each wave at once."""
    waves = 1 if quick else 3
    return [
        Case(name, dialect, 16, waves * 16, 32, step=0.005, words=words)
        for name, dialect, words in (
            ("2k prompt chat stream", Dialect.CHAT, 2_000),
            ("8k prompt chat stream", Dialect.CHAT, 8_000),
            ("8k prompt completions stream", Dialect.COMPLETION, 8_000),
        )
    ]


def _stream(
    name: str, dialect: Dialect, streams: int, requests: int, turns: int, tokens: int
) -> Case:
    return Case(name, dialect, streams, max(streams, requests), tokens, turns=turns)
