"""The OpenAI and Anthropic face of the fake engine, beyond what every engine promises."""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import AsyncIterator
from typing import Any

import pytest

from llmserve.engine.fake import FakeEngine, Reply, Script
from llmserve.engine.protocol import Context, Json
from llmserve.errors import InvalidRequest, PromptTooLong, Unsupported
from llmserve.types import Meter, Operation

pytestmark = pytest.mark.anyio

USER = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    script = Script(
        tasks=frozenset({"generate", "embed"}),
        max_model_len=200,
        replies=(Reply("hello", "Good day to you."), Reply("", lambda prompt: prompt)),
    )
    engine = FakeEngine(script)
    await engine.start(lambda *_: None)
    yield engine
    await engine.aclose()


async def call(engine: FakeEngine, operation: Operation, **body: Any) -> Json:
    reply = await engine.openai(operation, body, Context("id", "m"), Meter())
    assert isinstance(reply, dict)
    return reply


def nulls(value: Any, path: str = "") -> set[str]:
    """Where the nulls are; list positions do not matter."""
    if isinstance(value, dict):
        return {found for key, item in value.items() for found in nulls(item, f"{path}.{key}")}
    if isinstance(value, list):
        return {found for item in value for found in nulls(item, path)}
    return {path} if value is None else set()


@pytest.mark.parametrize(
    ("operation", "body", "allowed"),
    [
        (
            Operation.CHAT,
            {"messages": USER},
            {".choices.message.refusal", ".choices.logprobs"},
        ),
        (Operation.COMPLETION, {"prompt": "hello"}, {".choices.logprobs"}),
        (Operation.COMPLETION, {"prompt": "hello", "logprobs": 1}, set()),
        (Operation.MESSAGES, {"messages": USER, "max_tokens": 3}, {".stop_sequence"}),
        (
            Operation.RESPONSES,
            {"input": "hello"},
            {".error", ".incomplete_details", ".instructions"},
        ),
        (Operation.EMBEDDINGS, {"input": "hello"}, set()),
        (Operation.TOKENIZE, {"prompt": "hello"}, set()),
    ],
)
async def test_nulls_stand_only_where_the_schema_has_them(
    engine: FakeEngine, operation: Operation, body: Json, allowed: set[str]
) -> None:
    assert nulls(await call(engine, operation, **body)) == allowed


async def test_content_parts_and_tool_messages_are_read(engine: FakeEngine) -> None:
    made = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "one"}]},
        {"role": "assistant", "content": None, "tool_calls": [made]},
        {"role": "tool", "tool_call_id": "c", "content": "two"},
    ]

    reply = await call(engine, Operation.CHAT, messages=messages)

    echoed = reply["choices"][0]["message"]["content"]
    assert echoed == "<|developer|>one\n<|assistant|>\n<|tool|>two\n<|assistant|>"


async def test_max_completion_tokens_wins(engine: FakeEngine) -> None:
    reply = await call(engine, Operation.CHAT, messages=USER, max_tokens=9, max_completion_tokens=2)

    assert reply["usage"]["completion_tokens"] == 2
    assert reply["choices"][0]["finish_reason"] == "length"


async def test_structured_outputs_of_vllm(engine: FakeEngine) -> None:
    for constraint, text in (
        ({"choice": ["red"]}, "red"),
        ({"regex": "[0-9]{2}"}, "00"),
        ({"json": {"const": 7}}, "7"),
    ):
        reply = await call(
            engine, Operation.COMPLETION, prompt="hello", structured_outputs=constraint
        )
        assert reply["choices"][0]["text"] == text


async def test_completion_offsets_follow_the_text(engine: FakeEngine) -> None:
    reply = await call(engine, Operation.COMPLETION, prompt="hello", logprobs=1)

    scores = reply["choices"][0]["logprobs"]
    assert scores["tokens"][:3] == ["Good", " day", " to"]
    assert scores["text_offset"][:3] == [0, 4, 8]
    assert scores["top_logprobs"][0] == {"Good": scores["token_logprobs"][0]}


async def test_streams_carry_scores_and_usage(engine: FakeEngine) -> None:
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chat = await stream(engine, Operation.CHAT, messages=USER, logprobs=True, **options)
    text = await stream(engine, Operation.COMPLETION, prompt="hello", logprobs=0, **options)

    scores = [c["logprobs"]["content"] for e in chat for c in e["choices"] if "logprobs" in c]
    assert sum(map(len, scores)) == chat[-1]["usage"]["completion_tokens"]
    offsets = [c["logprobs"]["text_offset"] for e in text for c in e["choices"]]
    assert offsets[:3] == [[0], [4], [8]]
    assert text[-1]["usage"]["completion_tokens"] == len(offsets)


async def stream(engine: FakeEngine, operation: Operation, **body: Any) -> list[Json]:
    reply = await engine.openai(operation, body, Context("id", "m"), Meter())
    assert not isinstance(reply, dict)
    return [event.data async for event in reply]


async def test_completions_take_token_ids(engine: FakeEngine) -> None:
    tokens = (await call(engine, Operation.TOKENIZE, prompt="hello"))["tokens"]

    reply = await call(engine, Operation.COMPLETION, prompt=[tokens, tokens])

    assert [choice["text"] for choice in reply["choices"]] == ["Good day to you."] * 2


async def test_tokenize_a_conversation_and_show_tokens(engine: FakeEngine) -> None:
    reply = await call(engine, Operation.TOKENIZE, messages=USER, return_token_strs=True)

    assert "".join(reply["token_strs"]) == "<|user|>hello\n<|assistant|>"
    assert reply["count"] == len(reply["tokens"])


async def test_messages_say_which_sequence_stopped_them(engine: FakeEngine) -> None:
    reply = await call(
        engine, Operation.MESSAGES, messages=USER, max_tokens=50, stop_sequences=["to"]
    )

    assert reply["content"] == [{"type": "text", "text": "Good day "}]
    assert (reply["stop_reason"], reply["stop_sequence"]) == ("stop_sequence", "to")


async def test_responses_take_items_instructions_and_a_format(engine: FakeEngine) -> None:
    items = [{"role": "user", "content": [{"type": "input_text", "text": "two"}]}]
    echo = await call(engine, Operation.RESPONSES, input=items, instructions="one")
    form = {"type": "json_schema", "name": "n", "schema": {"const": 7}}
    shaped = await call(engine, Operation.RESPONSES, input="x", text={"format": form})
    cut = await call(engine, Operation.RESPONSES, input="x", max_output_tokens=1)

    text = echo["output"][0]["content"][0]["text"]
    assert text == "<|system|>one\n<|user|>two\n<|assistant|>"
    assert shaped["output"][0]["content"][0]["text"] == "7"
    assert (cut["status"], cut["incomplete_details"]) == (
        "incomplete",
        {"reason": "max_output_tokens"},
    )


async def test_embeddings_are_unit_vectors(engine: FakeEngine) -> None:
    reply = await call(engine, Operation.EMBEDDINGS, input=["one", "two", "one"])

    vectors = [entry["embedding"] for entry in reply["data"]]
    assert vectors[0] == vectors[2] != vectors[1]
    assert all(math.isclose(math.hypot(*vector), 1.0) for vector in vectors)
    packed = await call(engine, Operation.EMBEDDINGS, input="one", encoding_format="base64")
    raw = base64.b64decode(packed["data"][0]["embedding"])
    assert struct.unpack(f"<{len(raw) // 4}f", raw) == pytest.approx(vectors[0])


async def test_an_input_too_long_to_embed_is_refused(engine: FakeEngine) -> None:
    with pytest.raises(PromptTooLong) as caught:
        await call(engine, Operation.EMBEDDINGS, input="a " * 300)

    assert caught.value.param == "input"


@pytest.mark.parametrize(
    ("operation", "body", "param"),
    [
        (Operation.CHAT, {"messages": USER, "audio": {}}, "audio"),
        (Operation.COMPLETION, {"prompt": "x", "best_of": 2}, "best_of"),
        (Operation.COMPLETION, {"prompt": "x", "echo": True}, "echo"),
        (Operation.RESPONSES, {"input": "x", "tools": [{}]}, "tools"),
        (Operation.MESSAGES, {"messages": USER, "max_tokens": 1, "tools": [{}]}, "tools"),
        (Operation.EMBEDDINGS, {"input": "x", "dimensions": 4}, "dimensions"),
    ],
)
async def test_what_the_fake_does_not_do_it_refuses(
    engine: FakeEngine, operation: Operation, body: Json, param: str
) -> None:
    with pytest.raises(Unsupported) as caught:
        await call(engine, operation, **body)

    assert caught.value.param == param


IMAGE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
TOOLS = [{"type": "function", "function": {"name": "f"}}]


@pytest.mark.parametrize(
    ("operation", "body", "param"),
    [
        (Operation.CHAT, {}, "messages"),
        (Operation.CHAT, {"messages": "hi"}, "messages"),
        (Operation.CHAT, {"messages": ["hi"]}, "messages[0]"),
        (Operation.CHAT, {"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
        (Operation.CHAT, {"messages": [{"role": "user"}]}, "messages[0].content"),
        (Operation.CHAT, {"messages": IMAGE}, "messages[0].content[0].type"),
        (Operation.CHAT, {"messages": USER, "temperature": math.nan}, "temperature"),
        (Operation.CHAT, {"messages": USER, "max_tokens": True}, "max_tokens"),
        (Operation.CHAT, {"messages": USER, "stream": "yes"}, "stream"),
        (Operation.CHAT, {"messages": USER, "stop": [""]}, "stop"),
        (Operation.CHAT, {"messages": USER, "logit_bias": {"x": 1}}, "logit_bias"),
        (Operation.CHAT, {"messages": USER, "logit_bias": {"1": 101}}, "logit_bias.1"),
        (Operation.CHAT, {"messages": USER, "tools": TOOLS, "tool_choice": "g"}, "tool_choice"),
        (Operation.CHAT, {"messages": USER, "tools": [{}]}, "tools[0].function"),
        (
            Operation.CHAT,
            {"messages": USER, "response_format": {"type": "yaml"}},
            "response_format.type",
        ),
        (Operation.COMPLETION, {}, "prompt"),
        (Operation.COMPLETION, {"prompt": [["x"]]}, "prompt"),
        (Operation.COMPLETION, {"prompt": [-1]}, "prompt"),
        (Operation.MESSAGES, {"messages": USER}, "max_tokens"),
        (Operation.DETOKENIZE, {"tokens": [2**40]}, "tokens"),
        (Operation.EMBEDDINGS, {"input": "x", "encoding_format": "zip"}, "encoding_format"),
    ],
)
async def test_a_bad_field_is_named(
    engine: FakeEngine, operation: Operation, body: Json, param: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await call(engine, operation, **body)

    assert caught.value.param == param
