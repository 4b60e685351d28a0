"""The official ``openai`` package, sync and async, against the real demo model."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from tests.conformance.validator import assert_openai
from tests.e2e.conftest import DEMO
from tests.e2e.harness import Server

COLORS: list[Any] = [{"role": "user", "content": "Name three colors."}]
ANSWER = "1. Red\n2. Blue\n3. Green"
CITY = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "big": {"type": "boolean"}},
    "required": ["name", "big"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {"name": "look_up", "description": "Look up a city.", "parameters": CITY},
    }
]


@pytest.fixture
def client(demo_server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{demo_server.url}/v1", api_key="none", max_retries=0)


def test_chat(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model=DEMO, messages=COLORS, temperature=0, max_tokens=40
    )
    assert_openai("chat", json.loads(raw.text))
    assert raw.headers["x-request-id"] in raw.parse().id
    reply = raw.parse()
    assert reply.choices[0].message.content == ANSWER
    assert reply.choices[0].finish_reason == "stop"
    assert reply.model == DEMO
    assert reply.usage is not None
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


def test_chat_streams(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=DEMO,
        messages=COLORS,
        temperature=0,
        max_tokens=40,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    for chunk in chunks:
        assert_openai("chat_chunk", chunk.model_dump(mode="json", exclude_unset=True))
    text = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(text) == ANSWER
    assert sum(map(bool, text)) > 5
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 12


@pytest.mark.anyio
async def test_async_client_chats_and_streams(demo_server: Server, anyio_backend: str) -> None:
    async with openai.AsyncOpenAI(base_url=f"{demo_server.url}/v1", api_key="none") as client:
        reply = await client.chat.completions.create(
            model=DEMO, messages=COLORS, temperature=0, max_tokens=40
        )
        assert reply.choices[0].message.content == ANSWER
        stream = await client.chat.completions.create(
            model=DEMO, messages=COLORS, temperature=0, max_tokens=40, stream=True
        )
        text = [chunk.choices[0].delta.content or "" async for chunk in stream]
        assert "".join(text) == ANSWER


def test_json_by_schema(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model=DEMO,
        messages=[{"role": "user", "content": "Describe Paris as JSON."}],
        temperature=0,
        max_tokens=80,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "city", "schema": CITY, "strict": True},
        },
    )
    city = json.loads(reply.choices[0].message.content or "")
    assert set(city) == {"name", "big"}
    assert isinstance(city["big"], bool)


def test_json_object(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model=DEMO,
        messages=[{"role": "user", "content": 'Answer with {"ok": true} and nothing else.'}],
        temperature=0,
        max_tokens=200,
        response_format={"type": "json_object"},
    )
    if reply.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(reply.choices[0].message.content or ""), dict)
    else:
        assert (reply.choices[0].message.content or "").lstrip().startswith("{")


def test_log_probabilities(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model=DEMO, messages=COLORS, temperature=0, max_tokens=5, logprobs=True, top_logprobs=3
    )
    assert_openai("chat", json.loads(raw.text))
    logprobs = raw.parse().choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert [entry.token for entry in logprobs.content] == ["1", ".", " Red", "\n", "2"]
    for entry in logprobs.content:
        assert entry.logprob <= 0
        assert len(entry.top_logprobs) == 3
        assert entry.top_logprobs[0].token == entry.token


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "look_up"}}]
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_forced_tool_call_has_valid_arguments(
    client: openai.OpenAI, choice: Any, stream: bool
) -> None:
    request: dict[str, Any] = {
        "model": DEMO,
        "messages": [{"role": "user", "content": "Look up Paris."}],
        "temperature": 0,
        "max_tokens": 120,
        "tools": TOOLS,
        "tool_choice": choice,
    }
    if stream:
        name, arguments = "", ""
        for chunk in client.chat.completions.create(**request, stream=True):
            for call in chunk.choices[0].delta.tool_calls or ():
                assert call.function is not None
                name += call.function.name or ""
                arguments += call.function.arguments or ""
    else:
        message = client.chat.completions.create(**request).choices[0].message
        assert message.tool_calls is not None
        name, arguments = (
            message.tool_calls[0].function.name,
            message.tool_calls[0].function.arguments,
        )
    assert name == "look_up"
    assert set(json.loads(arguments)) == {"name", "big"}


def test_several_choices_seed_and_stop(client: openai.OpenAI) -> None:
    def sample() -> list[str | None]:
        reply = client.chat.completions.create(
            model=DEMO, messages=COLORS, n=3, seed=7, temperature=1, max_tokens=12
        )
        return [choice.message.content for choice in reply.choices]

    first = sample()
    assert len(set(first)) > 1
    assert sample() == first
    stopped = client.chat.completions.create(
        model=DEMO, messages=COLORS, temperature=0, max_tokens=40, stop=["\n2"]
    )
    assert stopped.choices[0].message.content == "1. Red"
    assert stopped.choices[0].finish_reason == "stop"


def test_logit_bias_forbids_a_token(client: openai.OpenAI, demo_server: Server) -> None:
    red = demo_server.post("/tokenize", {"prompt": " Red", "add_special_tokens": False}).json()
    reply = client.chat.completions.create(
        model=DEMO,
        messages=COLORS,
        temperature=0,
        max_tokens=40,
        logit_bias={str(red["tokens"][0]): -100},
    )
    assert " Red" not in (reply.choices[0].message.content or "")


def test_completions_echo_and_log_probabilities(client: openai.OpenAI) -> None:
    raw = client.completions.with_raw_response.create(
        model=DEMO, prompt="One, two,", echo=True, max_tokens=4, temperature=0, logprobs=1
    )
    body = json.loads(raw.text)
    choice = raw.parse().choices[0]
    assert choice.text.startswith("One, two,")
    assert choice.logprobs is not None
    assert body["usage"]["completion_tokens"] == 4
    several = client.completions.create(
        model=DEMO, prompt=["One, two,", "A, b,"], max_tokens=4, temperature=0
    )
    assert [choice.index for choice in several.choices] == [0, 1]
    streamed = client.completions.create(
        model=DEMO, prompt="One, two,", max_tokens=4, temperature=0, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in streamed) == several.choices[0].text


def test_responses(client: openai.OpenAI) -> None:
    raw = client.responses.with_raw_response.create(
        model=DEMO, input="Name three colors.", temperature=0, max_output_tokens=40
    )
    assert_openai("response", json.loads(raw.text))
    reply = raw.parse()
    assert reply.status == "completed"
    kinds = []
    text = ""
    for event in client.responses.create(
        model=DEMO, input="Name three colors.", temperature=0, max_output_tokens=40, stream=True
    ):
        assert_openai("response_event", event.model_dump(mode="json", exclude_unset=True))
        kinds.append(event.type)
        if event.type == "response.output_text.delta":
            text += event.delta
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"
    assert text == reply.output_text


def test_models(client: openai.OpenAI, demo_server: Server) -> None:
    assert_openai("models", demo_server.get("/v1/models").json())
    assert {model.id for model in client.models.list()} == {DEMO, "demo"}
    assert client.models.retrieve(DEMO).id == DEMO
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-4")
    assert_openai("error", {"error": caught.value.body})


@pytest.mark.parametrize("name", ["default", "dummy", "tgi", "demo", "URL", "URL/v1", "URL/v1/"])
def test_clients_that_were_given_no_model(demo_server: Server, name: str) -> None:
    name = name.replace("URL", demo_server.url)
    body = {"model": name, "messages": COLORS, "max_tokens": 1}
    reply = demo_server.post("/v1/chat/completions", body)
    assert reply.status_code == 200
    assert reply.json()["model"] == DEMO
    del body["model"]
    assert demo_server.post("/v1/chat/completions", body).json()["model"] == DEMO


def test_tokenize_and_back(demo_server: Server) -> None:
    text = "Größe matters, 日本語 too."
    tokens = demo_server.post("/tokenize", {"prompt": text}).json()
    assert tokens["count"] == len(tokens["tokens"])
    back = demo_server.post("/detokenize", {"tokens": tokens["tokens"]}).json()
    assert back["prompt"] == text


def test_embeddings_say_that_this_model_has_none(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        client.embeddings.create(model=DEMO, input="x")
    assert caught.value.status_code == 501
