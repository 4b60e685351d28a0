"""The lean streams say what vLLM's own say, event by event."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from driving import new_id
from ways import PROMPTS, SAMPLINGS, direct_off, events, joined, reply, shapes

from llmserve.engine.protocol import Context, Engine, Json
from llmserve.errors import InternalError
from llmserve.types import Meter, Operation

pytestmark = pytest.mark.anyio

TOOL_MARKUP = r'<tool_call>\{"name": "x", "arguments": \{\}\}</tool_call>'


@pytest.fixture(autouse=True)
def not_direct(vllm_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is plainest of all does not even come here."""
    direct_off(monkeypatch, vllm_engine)


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
    pushed: list[Json] = []
    short = await events(vllm_engine, operation, body, pushed)
    used: list[object] = []
    monkeypatch.setattr(face, "make_lean", lambda *given: used.append(given))
    slow = await events(vllm_engine, operation, body)
    assert used, "the slow way was gone"
    assert joined(lean) == joined(short) == joined(slow)
    assert len(shapes(lean, short, slow)) <= 1
    if len(short) >= 6:
        assert pushed, "the short way was not used"
        assert all(map(shapes, (lean, short, slow)))


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

    monkeypatch.setattr(lean, "ChatStream", refuse)
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
