"""Driving an engine from a test: ask, collect, wait for a condition."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from llmserve.engine.protocol import Context, Engine, Event, Json
from llmserve.types import Chunk, GenerateRequest, Load, Meter, Operation, Sampling

PROMPT = "The river runs past the old town"
LONG = Sampling(temperature=0, max_tokens=900, ignore_eos=True)

_ids = itertools.count()


def new_id() -> str:
    return f"test-{next(_ids)}"


def ask(prompt: str = PROMPT, **sampling: Any) -> GenerateRequest:
    return GenerateRequest(id=new_id(), prompt=prompt, sampling=Sampling(**sampling))


@dataclass
class Answer:
    """All chunks of a request, and what its meter said at the end."""

    chunks: list[Chunk] = field(default_factory=list)
    meter: Meter = field(default_factory=Meter)

    def of(self, index: int) -> list[Chunk]:
        return [chunk for chunk in self.chunks if chunk.index == index]

    def text(self, index: int = 0) -> str:
        return "".join(chunk.text for chunk in self.of(index))

    def ids(self, index: int = 0) -> tuple[int, ...]:
        return tuple(token for chunk in self.of(index) for token in chunk.token_ids)

    def last(self, index: int = 0) -> Chunk:
        return self.of(index)[-1]


async def run(engine: Engine, request: GenerateRequest) -> Answer:
    answer = Answer()
    async with aclosing(engine.generate(request, answer.meter)) as chunks:
        async for chunk in chunks:
            answer.chunks.append(chunk)
    return answer


async def call(
    engine: Engine, operation: Operation, body: Json, meter: Meter | None = None
) -> Json:
    context = Context(request_id=new_id(), model="tiny")
    reply = await engine.openai(operation, body, context, meter or Meter())
    assert isinstance(reply, dict)
    return reply


async def open_stream(
    engine: Engine, operation: Operation, body: Json, meter: Meter | None = None
) -> AsyncIterator[Event]:
    context = Context(request_id=new_id(), model="tiny")
    reply = await engine.openai(operation, body | {"stream": True}, context, meter or Meter())
    assert not isinstance(reply, dict)
    return reply


async def events(
    engine: Engine, operation: Operation, body: Json, meter: Meter | None = None
) -> list[Event]:
    async with aclosing(await open_stream(engine, operation, body, meter)) as stream:
        return [event async for event in stream]


def chat(text: str = PROMPT, **fields: Any) -> Json:
    body = {"messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 12}
    return body | fields


def delta_text(stream: Sequence[Event], index: int = 0) -> str:
    return "".join(
        choice["delta"].get("content", "")
        for event in stream
        for choice in event.data["choices"]
        if choice["index"] == index
    )


async def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    """Wait for a condition that another task or process brings about."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition was not met in time"
        await asyncio.sleep(0.01)


async def idle(engine: Engine) -> None:
    """Nothing runs, nothing waits and nothing is held."""
    await until(lambda: engine.load() == Load(running=0, waiting=0, kv_cache_usage=0.0))
