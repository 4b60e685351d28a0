"""The official ``anthropic`` package against the real demo model."""

from __future__ import annotations

from typing import Any

import anthropic
import httpx
import pytest

from tests.conformance.validator import assert_openai
from tests.e2e.conftest import DEMO
from tests.e2e.harness import Server, events

GREEDY = {"temperature": 0}
COLORS: list[Any] = [{"role": "user", "content": "Name three colors."}]


@pytest.fixture
def client(demo_server: Server) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=demo_server.url, api_key="none", max_retries=0)


def test_messages(client: anthropic.Anthropic, demo_server: Server) -> None:
    request = {"model": DEMO, "max_tokens": 40, "messages": COLORS, "temperature": 0}
    assert_openai("anthropic_message", demo_server.post("/v1/messages", request).json())
    reply = client.messages.create(model=DEMO, max_tokens=40, messages=COLORS, extra_body=GREEDY)
    assert reply.content[0].type == "text"
    assert "Red" in reply.content[0].text
    assert reply.stop_reason == "end_turn"
    assert reply.usage.output_tokens == 12


def test_messages_stream(client: anthropic.Anthropic, demo_server: Server) -> None:
    with client.messages.stream(
        model=DEMO, max_tokens=40, messages=COLORS, extra_body=GREEDY
    ) as stream:
        text = "".join(stream.text_stream)
        assert text == stream.get_final_text()
        assert "Red" in text
    body = {
        "model": DEMO,
        "max_tokens": 4,
        "messages": COLORS,
        "stream": True,
    }
    with httpx.stream("POST", demo_server.url + "/v1/messages", json=body) as response:
        seen = list(events(response))
    assert [event["event"] for event in seen] == [event["data"]["type"] for event in seen]
    assert seen[-1]["event"] == "message_stop"
    for event in seen:
        assert_openai("anthropic_event", event["data"])


def test_count_tokens(client: anthropic.Anthropic) -> None:
    counted = client.messages.count_tokens(model=DEMO, messages=COLORS)
    reply = client.messages.create(model=DEMO, max_tokens=1, messages=COLORS)
    assert counted.input_tokens == reply.usage.input_tokens


def test_errors_come_in_anthropics_envelope(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as missing:
        client.messages.create(model="claude", max_tokens=1, messages=COLORS)
    assert_openai("anthropic_error", missing.value.body)
    with pytest.raises(anthropic.BadRequestError) as bad:
        client.messages.create(model=DEMO, max_tokens=0, messages=COLORS)
    assert_openai("anthropic_error", bad.value.body)
    assert "max_tokens" in str(bad.value.message)
