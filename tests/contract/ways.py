"""Asking in every way there is, and comparing what comes back."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from driving import new_id

from llmserve.engine.protocol import Context, Engine
from llmserve.types import Meter, Operation

SAMPLINGS: dict[str, dict[str, Any]] = {
    "plain": {"max_tokens": 20},
    "cut": {"max_tokens": 1},
    "usage": {"max_tokens": 9, "stream_options": {"include_usage": True}},
    "no usage": {"max_tokens": 9, "stream_options": {"include_usage": False}},
    "seeded": {"max_tokens": 40, "temperature": 1.3, "seed": 7},
    "stop": {"max_tokens": 60, "stop": ["e", "a"]},
    "stop kept": {"max_tokens": 60, "stop": ["e"], "include_stop_str_in_output": True},
    "penalties": {"max_tokens": 20, "presence_penalty": 1.0, "repetition_penalty": 1.2},
    "emoji": {"max_tokens": 30, "structured_outputs": {"regex": "(🙂|東京|café){4}"}},
    "json": {"max_tokens": 60, "response_format": {"type": "json_object"}},
    "end": {"max_tokens": 20, "structured_outputs": {"choice": ["yes", "no"]}},
}
PROMPTS: dict[Operation, dict[str, Any]] = {
    Operation.CHAT: {
        "messages": [
            {"role": "system", "content": "You are brief. 🙂"},
            {"role": "user", "content": "Grüße aus 東京"},
        ]
    },
    Operation.COMPLETION: {"prompt": "Once upon a time in 東京 🙂"},
}


async def events(
    engine: Engine, operation: Operation, body: dict[str, Any], pushed: list[Any] | None = None
) -> list[Any]:
    """The events of a stream. With ``pushed``, the short way is open, and what comes over
    it is also put there."""
    seen: list[Any] = []

    def push(data: bytes) -> bool:
        assert pushed is not None
        pushed.append(json.loads(data))
        seen.append((None, pushed[-1]))
        return True

    request_id = new_id()
    context = Context(request_id, "tiny", push=None if pushed is None else push)
    stream = await engine.openai(operation, dict(body), context, Meter())
    assert isinstance(stream, AsyncIterator)
    async for event in stream:
        seen.append((event.event, event.data))
    return [(name, _normal(data, request_id)) for name, data in seen]


def _normal(data: dict[str, Any], request_id: str) -> dict[str, Any]:
    assert request_id in data["id"]
    assert isinstance(data["created"], int)
    plain = {key: value for key, value in data.items() if key not in ("id", "created")}
    if details := plain.get("usage", {}).get("prompt_tokens_details"):
        details["cached_tokens"] = 0
    return plain


def joined(seen: list[Any]) -> list[Any]:
    """The events with neighbouring texts put together: the engine merges tokens that come
    faster than they are read, and that is not the same twice."""
    result: list[Any] = []
    text = ""
    for name, data in seen:
        choice = (data.get("choices") or [None])[0]
        if choice is None or "role" in choice.get("delta", {}):
            result.append((name, data))
            continue
        held = choice.get("delta", choice)
        key = "content" if "delta" in choice else "text"
        text += held.get(key, "")
        if choice["finish_reason"] is not None:
            held[key] = text
            result.append((name, data))
    return result


async def reply(engine: Engine, operation: Operation, body: dict[str, Any]) -> dict[str, Any]:
    context = Context(new_id(), "tiny")
    found = await engine.openai(operation, dict(body), context, Meter())
    assert isinstance(found, dict)
    return _normal(found, context.request_id)


def direct_off(monkeypatch: pytest.MonkeyPatch, engine: Engine) -> list[str]:
    """From now on everything goes through vLLM's serving classes. Returns a list of the
    operations that would not have."""
    core = engine._core  # type: ignore[attr-defined]  # the engine on vLLM
    planned: list[str] = []
    plan, plan_long = core.direct.plan, core.direct.plan_long

    def none(operation: Operation, body: dict[str, Any]) -> None:
        if plan(operation, body) is not None:
            planned.append(operation.value)

    async def none_long(operation: Operation, body: dict[str, Any]) -> None:
        if not planned and await plan_long(operation, body) is not None:
            planned.append(operation.value)

    monkeypatch.setattr(core.direct, "plan", none)
    monkeypatch.setattr(core.direct, "plan_long", none_long)
    return planned
