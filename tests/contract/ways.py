"""Asking in every way there is, and comparing what comes back."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from driving import new_id

from llmserve.engine.protocol import Context, Engine, Json
from llmserve.types import Meter, Operation

SPLIT = "🙂東é" * 3
"""The first two of these characters are several tokens each."""

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

Seen = list[tuple[str | None, Json]]
"""The events of a stream: their names, where they have one, and their JSON."""


async def events(
    engine: Engine, operation: Operation, body: dict[str, Any], pushed: list[Json] | None = None
) -> Seen:
    """The events of a stream. With ``pushed``, the short way is open, and what comes over
    it is also put there."""
    seen: Seen = []

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
    assert len({(data["id"], data["created"]) for _, data in seen}) == 1
    return [(name, _normal(data, request_id)) for name, data in seen]


def _normal(data: Json, request_id: str) -> Json:
    assert request_id in data["id"]
    assert isinstance(data["created"], int)
    plain = data | {"id": data["id"].replace(request_id, "…"), "created": 0}
    if details := plain.get("usage", {}).get("prompt_tokens_details"):
        details["cached_tokens"] = 0
    return plain


def joined(seen: Seen) -> Seen:
    """The events at both ends, with the texts of those between them put into the next: the
    engine merges tokens that come faster than they are read, and that is not the same twice."""
    result: Seen = []
    text = ""
    for name, data in seen:
        if _is_between(data):
            text += _text(data) or ""
            continue
        if text and data["choices"]:
            data, text = _with_text(data, text + (_text(data) or "")), ""
        result.append((name, data))
    assert not text, "there is text after the end"
    return result


def shapes(*streams: Seen) -> Seen:
    """What the events between the ends are besides their texts, each once."""
    found: Seen = []
    for name, data in itertools.chain(*streams):
        if _is_between(data):
            shape = (name, data if _text(data) is None else _with_text(data, ""))
            if shape not in found:
                found.append(shape)
    return found


def _is_between(data: Json) -> bool:
    return any(
        choice["finish_reason"] is None and "role" not in choice.get("delta", {})
        for choice in data["choices"]
    )


def _text(data: Json) -> str | None:
    (choice,) = data["choices"]
    text: str | None = choice.get("text", choice.get("delta", {}).get("content"))
    return text


def _with_text(data: Json, text: str) -> Json:
    (choice,) = data["choices"]
    new = {"delta": choice["delta"] | {"content": text}} if "delta" in choice else {"text": text}
    return data | {"choices": [choice | new]}


async def reply(engine: Engine, operation: Operation, body: dict[str, Any]) -> Json:
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
