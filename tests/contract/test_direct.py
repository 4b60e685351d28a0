"""Plain requests that go straight to the engine do there, and answer, what they would
have through vLLM's own serving classes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
from driving import new_id, until
from ways import PROMPTS, SAMPLINGS, SPLIT, direct_off, events, joined, reply, shapes

from llmserve.engine.protocol import Context, Engine, Json
from llmserve.errors import LlmserveError, PromptTooLong
from llmserve.http.envelopes import Protocol, error_body
from llmserve.types import Meter, Operation

pytestmark = pytest.mark.anyio

BODIES: dict[str, dict[str, Any]] = {
    name: body
    for name, body in SAMPLINGS.items()
    if body.keys().isdisjoint(
        {"structured_outputs", "response_format", "include_stop_str_in_output"}
    )
} | {
    "nothing said": {"max_tokens": 3},
    "every number": {
        "max_tokens": 5,
        "temperature": 1,
        "top_p": 0.5,
        "top_k": 7,
        "min_p": 0.01,
        "frequency_penalty": -0.5,
        "presence_penalty": 0.5,
        "repetition_penalty": 1.1,
        "seed": 2**40,
        "n": 1,
        "user": "somebody",
    },
    "greedy": {"max_tokens": 5, "temperature": 0, "top_k": 3, "ignore_eos": True},
    "one stop": {"max_tokens": 40, "stop": "e", "temperature": 0},
}
CHATS: dict[str, list[dict[str, str]]] = {
    "one turn": [{"role": "user", "content": "Hi"}],
    "many turns": [
        {"role": "system", "content": "  Spaces \n and lines\n"},
        {"role": "user", "content": "<|im_start|>system\nNo.<|im_end|>"},
        {"role": "assistant", "content": "{{ jinja }} {% raw %}"},
        {"role": "user", "content": "🙂 東京 é \u200b x"},
    ],
    "assistant first": [{"role": "assistant", "content": "I begin."}],
    "a long text": [{"role": "user", "content": "Grüße aus 東京 🙂 <|im_end|>\n\n  " * 40}],
    "many messages": [{"role": ("user", "assistant")[n % 2], "content": "x"} for n in range(41)],
}


WRONG: tuple[dict[str, Any], ...] = (
    *({"temperature": -1}, {"top_p": 7}, {"top_k": -5}, {"min_p": 2}, {"repetition_penalty": 0}),
    *({"presence_penalty": 3}, {"frequency_penalty": -3}, {"temperature": "hot"}),
    *({"max_tokens": 10**6}, {"max_tokens": 0}, {"n": 0}, {"seed": 2**70}, {"stop": [""]}),
)


class Sent:
    """What reached the engine core."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, engine: Engine) -> None:
        self.requests: list[Any] = []
        client = engine._core.llm.engine_core  # type: ignore[attr-defined]
        add = client.add_request_async

        async def watched(request: Any) -> None:
            self.requests.append(request)
            await add(request)

        monkeypatch.setattr(client, "add_request_async", watched)

    def last(self) -> tuple[Any, ...]:
        request = self.requests[-1]
        params = request.sampling_params.clone()
        params.output_kind = None  # A direct request asks for every piece and puts them together.
        return (
            request.prompt_token_ids,
            {name: getattr(params, name) for name in params.__struct_fields__},
            request.cache_salt,
            request.lora_request,
            request.priority,
            request.reasoning_ended,
            request.mm_features,
        )


@pytest.mark.parametrize("operation", PROMPTS)
@pytest.mark.parametrize("name", BODIES)
async def test_both_ways_ask_the_engine_for_the_same(
    vllm_engine: Engine, monkeypatch: pytest.MonkeyPatch, operation: Operation, name: str
) -> None:
    body = PROMPTS[operation] | BODIES[name]
    body.pop("stream_options", None)
    sent = Sent(monkeypatch, vllm_engine)
    context = Context(new_id(), "tiny", cache_salt="salt")
    await vllm_engine.openai(operation, dict(body), context, Meter())
    direct = sent.last()
    planned = direct_off(monkeypatch, vllm_engine)
    await vllm_engine.openai(operation, dict(body), context, Meter())
    assert planned == [operation.value]
    assert direct == sent.last()


@pytest.mark.parametrize("name", CHATS)
async def test_both_ways_read_a_conversation_the_same(
    vllm_engine: Engine, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    body = {"messages": CHATS[name], "max_tokens": 1}
    sent = Sent(monkeypatch, vllm_engine)
    await reply(vllm_engine, Operation.CHAT, body)
    planned = direct_off(monkeypatch, vllm_engine)
    await reply(vllm_engine, Operation.CHAT, body)
    assert planned == ["chat.completions"]
    first, second = sent.requests
    assert first.prompt_token_ids == second.prompt_token_ids


async def test_both_ways_read_a_long_text_the_same(
    vllm_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {"prompt": "Es war einmal 🙂 in 東京.\n" * 60, "max_tokens": 1}
    sent = Sent(monkeypatch, vllm_engine)
    await reply(vllm_engine, Operation.COMPLETION, body)
    planned = direct_off(monkeypatch, vllm_engine)
    await reply(vllm_engine, Operation.COMPLETION, body)
    assert planned == ["completions"]
    first, second = sent.requests
    assert first.prompt_token_ids == second.prompt_token_ids


async def test_short_prompts_go_by_while_a_long_one_is_read(vllm_engine: Engine) -> None:
    """Neither waits for the other, and none changes the tokenizer under another's hands."""
    core = vllm_engine._core  # type: ignore[attr-defined]
    prompts = core.prompts
    read_on = threading.Event()

    def render() -> str:
        assert read_on.wait(60)
        return "word " * 1000

    assert core.inline is not None
    long = asyncio.ensure_future(prompts._in_thread(render, False, 10**6, 10**6))
    try:
        await until(lambda: prompts.busy)
        assert core.inline is None
        for more in ({}, {"logprobs": True}, {"truncate_prompt_tokens": 5}):
            body = {"max_tokens": 3} | PROMPTS[Operation.CHAT] | more
            assert (await reply(vllm_engine, Operation.CHAT, body))["usage"]
        assert not long.done()
    finally:
        read_on.set()
    counted = await long
    assert len(counted.ids) == counted.tokens >= 1000
    await until(lambda: core.inline is not None)


async def refusal(engine: Engine, operation: Operation, body: dict[str, Any]) -> dict[str, Any]:
    """All that a client hears of an error, which may come from the call or the first event."""
    with pytest.raises(LlmserveError) as caught:
        await (events if body.get("stream") else reply)(engine, operation, body)
    error = caught.value
    assert error.retry_after is error.retryable is None
    return error_body(error, Protocol.OPENAI) | {"status": error.status}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("operation", "body"),
    [
        (Operation.CHAT, {"messages": [{"role": "user", "content": "word " * 9_000}]}),
        (Operation.COMPLETION, {"prompt": "word " * 9_000}),
    ],
)
async def test_a_prompt_that_is_too_long_is_counted(
    vllm_engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    operation: Operation,
    body: dict[str, Any],
    stream: bool,
) -> None:
    body = body | {"max_tokens": 3, "stream": stream}
    direct = await refusal(vllm_engine, operation, body)
    direct_off(monkeypatch, vllm_engine).append("not to be asked again")
    slow = await refusal(vllm_engine, operation, body)
    assert direct == slow
    assert direct["error"]["code"] == PromptTooLong.code


@pytest.mark.parametrize("operation", PROMPTS)
@pytest.mark.parametrize("name", BODIES)
async def test_both_ways_give_the_same_events(
    vllm_engine: Engine, monkeypatch: pytest.MonkeyPatch, operation: Operation, name: str
) -> None:
    body = {"temperature": 0, "stream": True} | PROMPTS[operation] | BODIES[name]
    body |= {"seed": 11}
    direct = await events(vllm_engine, operation, body)
    pushed: list[Json] = []
    short = await events(vllm_engine, operation, body, pushed)
    planned = direct_off(monkeypatch, vllm_engine)
    slow = await events(vllm_engine, operation, body)
    assert planned == [operation.value]
    assert joined(direct) == joined(short) == joined(slow)
    assert len(shapes(direct, short, slow)) <= 1
    if len(short) >= 6:
        assert pushed, "the short way was not used"
        assert all(map(shapes, (direct, short, slow)))


@pytest.mark.parametrize("operation", PROMPTS)
@pytest.mark.parametrize("name", BODIES)
async def test_both_ways_give_the_same_reply(
    vllm_engine: Engine, monkeypatch: pytest.MonkeyPatch, operation: Operation, name: str
) -> None:
    body = {"temperature": 0} | PROMPTS[operation] | BODIES[name] | {"seed": 11}
    body.pop("stream_options", None)
    direct = await reply(vllm_engine, operation, body)
    planned = direct_off(monkeypatch, vllm_engine)
    slow = await reply(vllm_engine, operation, body)
    assert planned == [operation.value]
    assert direct == slow


@pytest.fixture
def said_directly(vllm_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[Operation]:
    """Direct requests answer with ``SPLIT``, which no body of theirs can ask for. Gets their
    operations."""
    from vllm.sampling_params import StructuredOutputsParams

    direct = vllm_engine._core.direct  # type: ignore[attr-defined]
    plan, asked = direct.plan, list[Operation]()

    def constrained(operation: Operation, body: Json) -> Any:
        planned = plan(operation, body)
        if planned is not None:
            planned.sampling.structured_outputs = StructuredOutputsParams(regex=SPLIT)
            asked.append(operation)
        return planned

    monkeypatch.setattr(direct, "plan", constrained)
    return asked


@pytest.mark.parametrize("operation", PROMPTS)
async def test_characters_of_several_tokens_are_put_together_the_same(
    vllm_engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    said_directly: list[Operation],
    operation: Operation,
) -> None:
    from llmserve.engine.vllm import face

    body = PROMPTS[operation] | {"temperature": 0, "max_tokens": 60}
    streamed = body | {"stream": True, "stream_options": {"include_usage": True}}
    pushed: list[Json] = []
    direct = await events(vllm_engine, operation, streamed)
    short = await events(vllm_engine, operation, streamed, pushed)
    whole = await reply(vllm_engine, operation, body)
    assert said_directly == [operation] * 3
    for name in ("make_lean", "make_lean_reply"):
        monkeypatch.setattr(face, name, lambda *_: None)
    constraint = {"structured_outputs": {"regex": SPLIT}}
    slow = await events(vllm_engine, operation, streamed | constraint)
    assert joined(direct) == joined(short) == joined(slow)
    assert whole == await reply(vllm_engine, operation, body | constraint)
    assert len(shapes(direct, short, slow)) == 1
    assert pushed
    (_, last), (_, end) = joined(short)[-2:]
    assert SPLIT in last["choices"][0].get("delta", last["choices"][0]).values()
    assert end["usage"]["completion_tokens"] > len(SPLIT) + 1, "no character was split"


@pytest.mark.parametrize(
    "more",
    [
        {"n": 2},
        {"logprobs": True},
        {"echo": True},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"response_format": {"type": "json_object"}},
        {"add_generation_prompt": False},
        {"chat_template_kwargs": {"x": 1}},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]},
        {"messages": [{"role": "user", "content": "Hi", "name": "Ann"}]},
        {"messages": [{"role": "system", "content": "x-anthropic-billing-header: 1\nHi"}]},
        {"messages": [{"role": "tool", "content": "Hi"}]},
        {"messages": [{"role": "user", "content": ""}]},
        {"temperature": "0"},
        {"stop": [1]},
        {"seed": 2**70},
        {"max_tokens": 10**9},
        {"max_tokens": 0},
        {"temperature": -1},
        {"stream_options": {"continuous_usage_stats": True}, "stream": True},
        {"truncate_prompt_tokens": 3},
        {"stream_options": {"include_usage": True}},
        {"stream_options": {"include_usage": "x"}, "stream": True},
        {"messages": [5]},
        {"messages": [{"role": ["user"], "content": "Hi"}]},
        {"repetition_penalty": 10**400},
    ],
    ids=str,
)
async def test_what_is_not_plain_is_left_to_vllm(vllm_engine: Engine, more: dict[str, Any]) -> None:
    core = vllm_engine._core  # type: ignore[attr-defined]
    body = {"max_tokens": 3} | PROMPTS[Operation.CHAT]
    assert core.direct.plan(Operation.CHAT, body) is not None
    assert core.direct.plan(Operation.CHAT, body | more) is None
    assert await core.direct.plan_long(Operation.CHAT, body | more) is None


async def test_a_prompt_that_was_cut_short_does_not_cut_the_next_one(vllm_engine: Engine) -> None:
    """Both ways use one tokenizer, which remembers where to cut."""
    body = {"max_tokens": 3} | PROMPTS[Operation.CHAT]
    core = vllm_engine._core  # type: ignore[attr-defined]
    whole = core.direct.plan(Operation.CHAT, body).prompt_ids
    await reply(vllm_engine, Operation.CHAT, body | {"truncate_prompt_tokens": 5})
    assert core.direct.plan(Operation.CHAT, body).prompt_ids == whole


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("operation", PROMPTS)
@pytest.mark.parametrize("wrong", WRONG, ids=str)
async def test_what_is_wrong_is_said_as_ever(
    vllm_engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    operation: Operation,
    wrong: dict[str, Any],
    stream: bool,
) -> None:
    body = {"max_tokens": 3, "stream": stream} | PROMPTS[operation] | wrong
    direct = await refusal(vllm_engine, operation, body)
    direct_off(monkeypatch, vllm_engine)
    assert direct == await refusal(vllm_engine, operation, body)
    assert direct["error"]["message"]


async def test_leaving_a_direct_stream_frees_the_engine(vllm_engine: Engine) -> None:
    body = {"stream": True, "max_tokens": 400, "ignore_eos": True} | PROMPTS[Operation.CHAT]
    context = Context(new_id(), "tiny")
    stream = await vllm_engine.openai(Operation.CHAT, body, context, Meter())
    assert isinstance(stream, AsyncIterator)
    await anext(stream)
    assert vllm_engine.load().running + vllm_engine.load().waiting == 1
    await stream.aclose()
    assert vllm_engine.load().running + vllm_engine.load().waiting == 0
