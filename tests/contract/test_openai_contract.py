"""What every engine promises on its OpenAI face."""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import aclosing
from typing import Any

import pytest
from driving import (
    PROMPT,
    ask,
    call,
    chat,
    delta_text,
    events,
    idle,
    new_id,
    open_stream,
    run,
    until,
)

from llmserve.engine.protocol import Context, Engine, Json
from llmserve.errors import InvalidRequest, NotImplementedHere, PromptTooLong
from llmserve.types import Meter, Operation

pytestmark = pytest.mark.anyio


# Chat


async def test_chat_replies(engine: Engine) -> None:
    meter = Meter()
    context = Context(request_id=new_id(), model="tiny")

    reply = await engine.openai(Operation.CHAT, chat(), context, meter)

    assert isinstance(reply, dict)
    assert reply["id"] == f"chatcmpl-{context.request_id}"
    assert (reply["object"], reply["model"]) == ("chat.completion", "tiny")
    (choice,) = reply["choices"]
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["refusal"] is None
    assert choice["finish_reason"] in ("stop", "length")
    assert choice["logprobs"] is None
    assert usage_of(reply) == metered(meter)
    assert meter.completion_tokens > 0


async def test_chat_streams_the_same_text(engine: Engine) -> None:
    meter = Meter()
    reply = await call(engine, Operation.CHAT, chat())
    stream = await events(
        engine, Operation.CHAT, chat(stream_options={"include_usage": True}), meter
    )

    assert delta_text(stream) == reply["choices"][0]["message"]["content"]
    assert stream[0].data["choices"][0]["delta"]["role"] == "assistant"
    assert stream[-1].data["choices"] == []
    assert usage_of(stream[-1].data) == metered(meter) == usage_of(reply)
    assert len({event.data["id"] for event in stream}) == 1
    finishes = [c["finish_reason"] for e in stream for c in e.data["choices"]]
    assert finishes[-1] == reply["choices"][0]["finish_reason"]
    assert set(finishes[:-1]) == {None}


async def test_no_usage_unless_asked(engine: Engine) -> None:
    stream = await events(engine, Operation.CHAT, chat())

    assert all("usage" not in event.data for event in stream)


async def test_chat_has_n_choices(engine: Engine) -> None:
    body = chat(n=2, temperature=1, seed=3)
    meter = Meter()

    reply = await call(engine, Operation.CHAT, body, meter)
    stream = await events(engine, Operation.CHAT, body)

    assert [choice["index"] for choice in reply["choices"]] == [0, 1]
    assert usage_of(reply) == metered(meter)
    for index, choice in enumerate(reply["choices"]):
        assert delta_text(stream, index) == choice["message"]["content"]


async def test_chat_stops_at_a_stop_string(engine: Engine) -> None:
    whole = await call(engine, Operation.CHAT, chat(max_tokens=40))
    text = whole["choices"][0]["message"]["content"]
    stop = next(text[i : i + 3] for i in range(8, len(text)) if "\ufffd" not in text[i : i + 3])

    reply = await call(engine, Operation.CHAT, chat(max_tokens=40, stop=[stop]))

    assert reply["choices"][0]["message"]["content"] == text[: text.find(stop)]
    assert reply["choices"][0]["finish_reason"] == "stop"


async def test_chat_has_log_probabilities(engine: Engine) -> None:
    reply = await call(engine, Operation.CHAT, chat(logprobs=True, top_logprobs=2))

    content = reply["choices"][0]["logprobs"]["content"]
    assert len(content) == reply["usage"]["completion_tokens"]
    for score in content:
        assert score["logprob"] <= 0
        assert len(score["top_logprobs"]) == 2
        assert all(isinstance(byte, int) for byte in score["bytes"])


SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}


async def test_chat_keeps_to_a_json_schema(engine: Engine) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}

    reply = await call(engine, Operation.CHAT, chat(max_tokens=100, response_format=wanted))

    value = json.loads(reply["choices"][0]["message"]["content"])
    assert isinstance(value.pop("ok"), bool)
    assert value == {}


TOOL = {"type": "function", "function": {"name": "decide", "parameters": SCHEMA}}


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "decide"}}]
)
async def test_a_forced_tool_call_has_valid_arguments(engine: Engine, choice: Any) -> None:
    # One call: a random model goes on calling until it is cut in the middle of a call.
    body = chat(max_tokens=100, tools=[TOOL], tool_choice=choice, parallel_tool_calls=False)

    reply = await call(engine, Operation.CHAT, body)
    stream = await events(engine, Operation.CHAT, body)

    message = reply["choices"][0]["message"]
    (made,) = message["tool_calls"]
    assert made["type"] == "function"
    assert made["id"]
    assert made["function"]["name"] == "decide"
    assert set(json.loads(made["function"]["arguments"])) == {"ok"}
    assert message["content"] is None
    pieces = [
        piece["function"].get("arguments", "")
        for event in stream
        for streamed in event.data["choices"]
        for piece in streamed["delta"].get("tool_calls", ())
    ]
    assert json.loads("".join(pieces)) == json.loads(made["function"]["arguments"])


# The other operations


async def test_completions_agree_with_generate(engine: Engine) -> None:
    answer = await run(engine, ask(temperature=0, max_tokens=16))
    body = {"prompt": PROMPT, "temperature": 0, "max_tokens": 16}
    meter = Meter()

    reply = await call(engine, Operation.COMPLETION, body, meter)
    stream = await events(engine, Operation.COMPLETION, body)

    assert reply["object"] == "text_completion"
    assert reply["id"].startswith("cmpl-")
    assert reply["choices"][0]["text"] == answer.text()
    assert "".join(c["text"] for e in stream for c in e.data["choices"]) == answer.text()
    assert usage_of(reply) == metered(meter) == metered(answer.meter)


async def test_completions_take_several_prompts(engine: Engine) -> None:
    meter = Meter()
    body = {"prompt": [PROMPT, "Another one"], "temperature": 0, "max_tokens": 6}

    reply = await call(engine, Operation.COMPLETION, body, meter)

    assert [choice["index"] for choice in reply["choices"]] == [0, 1]
    assert usage_of(reply) == metered(meter)


async def test_tokenize_and_back(engine: Engine) -> None:
    text = "Ein naïver Satz, 東京 🙂."
    answer = await run(engine, ask(text, max_tokens=1))

    tokens = await call(engine, Operation.TOKENIZE, {"prompt": text})
    back = await call(engine, Operation.DETOKENIZE, {"tokens": tokens["tokens"]})

    assert tokens["count"] == len(tokens["tokens"]) == answer.meter.prompt_tokens
    assert tokens["max_model_len"] == engine.info.max_model_len
    assert back["prompt"] == text


async def test_messages_reply_and_stream(engine: Engine) -> None:
    meter, body = Meter(), chat()
    reply = await call(engine, Operation.MESSAGES, body, meter)
    stream = await events(engine, Operation.MESSAGES, body)
    counted = await call(engine, Operation.COUNT_TOKENS, body)

    assert reply["id"].startswith("msg_")
    assert (reply["type"], reply["role"], reply["model"]) == ("message", "assistant", "tiny")
    assert reply["stop_reason"] in ("end_turn", "max_tokens")
    assert reply["usage"]["input_tokens"] == meter.prompt_tokens == counted["input_tokens"]
    assert reply["usage"]["output_tokens"] == meter.completion_tokens
    assert all(event.event == event.data["type"] for event in stream)
    names = [event.event for event in stream if event.event != "ping"]
    assert names[:2] == ["message_start", "content_block_start"]
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    text = "".join(event.data["delta"].get("text", "") for event in stream if is_delta(event.data))
    assert text == reply["content"][0]["text"]


async def test_responses_reply_and_stream(engine: Engine) -> None:
    meter = Meter()
    body = {"input": PROMPT, "temperature": 0, "max_output_tokens": 12}
    reply = await call(engine, Operation.RESPONSES, body, meter)
    stream = await events(engine, Operation.RESPONSES, body)

    assert reply["id"].startswith("resp_")
    assert (reply["object"], reply["error"]) == ("response", None)
    assert reply["usage"]["input_tokens"] == meter.prompt_tokens
    assert reply["usage"]["output_tokens"] == meter.completion_tokens
    assert all(event.event == event.data["type"] for event in stream)
    assert stream[0].event == "response.created"
    assert stream[-1].event == f"response.{reply['status']}"
    numbers = [event.data["sequence_number"] for event in stream]
    assert numbers == sorted(set(numbers))
    text = "".join(e.data["delta"] for e in stream if e.event == "response.output_text.delta")
    assert text == reply["output"][-1]["content"][0]["text"]


async def test_what_the_model_cannot_do_is_refused(engine: Engine) -> None:
    with pytest.raises(NotImplementedHere):
        await call(engine, Operation.EMBEDDINGS, {"input": "text"})


# Errors and aborts


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", "hot"),
        ("temperature", -1),
        ("top_p", 7),
        ("max_tokens", "many"),
        ("max_tokens", 0),
        ("n", 0),
        ("stop", 7),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
async def test_a_bad_value_names_its_field(
    engine: Engine, field: str, value: object, streaming: bool
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await first_event(engine, chat() | {field: value, "stream": streaming})

    # vLLM's own checks of sampling parameters name the field in the message only.
    assert re.search(rf"\b{field}\b", f"{caught.value.param} {caught.value.message}")
    await idle(engine)


@pytest.mark.parametrize("streaming", [False, True])
async def test_a_chat_too_long_is_refused(engine: Engine, streaming: bool) -> None:
    body = chat("river " * (engine.info.max_model_len + 10), stream=streaming)

    with pytest.raises(InvalidRequest) as caught:
        await first_event(engine, body)

    assert caught.value.code == PromptTooLong.code
    assert caught.value.param == "messages"
    assert str(engine.info.max_model_len) in caught.value.message
    await idle(engine)


async def first_event(engine: Engine, body: Json) -> None:
    """An early error may come from the call or from the first event."""
    context = Context(request_id=new_id(), model="tiny")
    reply = await engine.openai(Operation.CHAT, body, context, Meter())
    if not isinstance(reply, dict):
        async with aclosing(reply) as stream:
            await anext(stream)


@pytest.mark.parametrize(
    ("operation", "body"),
    [
        (Operation.CHAT, chat(max_tokens=900, ignore_eos=True)),
        (
            Operation.COMPLETION,
            {"prompt": PROMPT, "max_tokens": 900, "ignore_eos": True, "temperature": 0},
        ),
    ],
)
async def test_closing_the_stream_aborts(engine: Engine, operation: Operation, body: Json) -> None:
    await idle(engine)
    meter = Meter()
    async with aclosing(await open_stream(engine, operation, body, meter)) as stream:
        for _ in range(3):
            await anext(stream)
        assert engine.load().running == 1

    await idle(engine)
    assert 1 <= meter.completion_tokens < 900


async def test_cancelling_the_call_aborts(engine: Engine) -> None:
    await idle(engine)
    meter = Meter()
    body = chat(max_tokens=900, ignore_eos=True)
    task = asyncio.create_task(call(engine, Operation.CHAT, body, meter))
    await until(lambda: engine.load().running == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    await idle(engine)
    assert meter.completion_tokens < 900


def usage_of(reply: Json) -> tuple[int, int, int]:
    usage = reply["usage"]
    return usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]


def metered(meter: Meter) -> tuple[int, int, int]:
    total = meter.prompt_tokens + meter.completion_tokens
    return meter.prompt_tokens, meter.completion_tokens, total


def is_delta(data: Json) -> bool:
    return bool(data["type"] == "content_block_delta")
