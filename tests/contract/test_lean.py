"""The lean streams say what vLLM's own say, event by event."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from driving import new_id

from llmserve.engine.fake import FakeEngine
from llmserve.engine.protocol import Context, Engine
from llmserve.errors import InternalError
from llmserve.types import Meter, Operation

pytestmark = pytest.mark.anyio

TOOL_MARKUP = r'<tool_call>\{"name": "x", "arguments": \{\}\}</tool_call>'
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


@pytest.fixture
def vllm_engine(engine: Engine) -> Engine:
    if isinstance(engine, FakeEngine):
        pytest.skip("the fake engine has one way only")
    return engine


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


@pytest.mark.parametrize("operation", PROMPTS)
@pytest.mark.parametrize("name", SAMPLINGS)
async def test_both_ways_give_the_same_events(
    vllm_engine: Engine, monkeypatch: pytest.MonkeyPatch, operation: Operation, name: str
) -> None:
    from llmserve.engine.vllm import face

    if name == "json" and operation is Operation.COMPLETION:
        pytest.skip("completions have no response_format of this kind")
    body = {"temperature": 0, "stream": True} | PROMPTS[operation] | SAMPLINGS[name]
    lean = await events(vllm_engine, operation, body)
    pushed: list[Any] = []
    short = await events(vllm_engine, operation, body, pushed)
    used: list[object] = []
    monkeypatch.setattr(face, "make_lean", lambda *given: used.append(given))
    slow = await events(vllm_engine, operation, body)
    assert used, "the slow way was gone"
    assert joined(lean) == joined(short) == joined(slow)
    assert lean
    assert pushed or len(short) < 6, "the short way was not used"


async def reply(engine: Engine, operation: Operation, body: dict[str, Any]) -> dict[str, Any]:
    context = Context(new_id(), "tiny")
    found = await engine.openai(operation, dict(body), context, Meter())
    assert isinstance(found, dict)
    return _normal(found, context.request_id)


@pytest.mark.parametrize("operation", PROMPTS)
@pytest.mark.parametrize("name", SAMPLINGS)
async def test_both_ways_give_the_same_reply(
    vllm_engine: Engine, monkeypatch: pytest.MonkeyPatch, operation: Operation, name: str
) -> None:
    from llmserve.engine.vllm import face

    if name == "json" and operation is Operation.COMPLETION:
        pytest.skip("completions have no response_format of this kind")
    body = {"temperature": 0} | PROMPTS[operation] | SAMPLINGS[name]
    body.pop("stream_options", None)
    lean = await reply(vllm_engine, operation, body)
    used: list[object] = []
    monkeypatch.setattr(face, "make_lean_reply", lambda *given: used.append(given))
    slow = await reply(vllm_engine, operation, body)
    assert used, "the slow way was gone"
    assert lean == slow


async def test_markup_is_text_where_no_tools_are_offered(vllm_engine: Engine) -> None:
    """vLLM's own stream makes a tool call of it, which nobody who offered no tools expects
    (and its replies that are not streamed do not)."""
    constraint = {"max_tokens": 60, "structured_outputs": {"regex": TOOL_MARKUP}}
    body = {"temperature": 0, "stream": True} | PROMPTS[Operation.CHAT] | constraint
    *_, (_, last) = joined(await events(vllm_engine, Operation.CHAT, body))
    assert last["choices"][0]["delta"]["content"].startswith('<tool_call>{"name": "x"')


@pytest.mark.parametrize(
    "more",
    [
        {"n": 2, "temperature": 1, "seed": 3},
        {"logprobs": True},
        {"echo": True},
        {"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
    ],
)
async def test_what_is_not_plain_goes_the_slow_way(
    vllm_engine: Engine, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
) -> None:
    from llmserve.engine.vllm import lean

    def refuse(*_: object) -> None:
        raise AssertionError("the lean way was taken")

    monkeypatch.setattr(lean, "_ChatStream", refuse)
    body = {"temperature": 0, "stream": True, "max_tokens": 3} | PROMPTS[Operation.CHAT] | more
    assert await events(vllm_engine, Operation.CHAT, body)


async def test_what_goes_wrong_on_the_short_way_ends_one_request_and_not_the_engine(
    vllm_engine: Engine,
) -> None:
    def broken(_: bytes) -> bool:
        raise RuntimeError("the connection is in an odd state")

    body = {"temperature": 0, "stream": True, "max_tokens": 40} | PROMPTS[Operation.CHAT]
    context = Context(new_id(), "tiny", push=broken)
    stream = await vllm_engine.openai(Operation.CHAT, dict(body), context, Meter())
    assert isinstance(stream, AsyncIterator)
    with pytest.raises(InternalError):
        async for _ in stream:
            pass
    assert vllm_engine.alive()
    assert await events(vllm_engine, Operation.CHAT, body)
