"""What ``conform`` changes, piece by piece. That the whole conforms is tested on real
replies in ``tests/conformance``."""

from __future__ import annotations

from typing import Any

import pytest

from llmserve.engine.protocol import Context
from llmserve.engine.vllm import conform
from llmserve.types import Operation

CONTEXT = Context(request_id="r1", model="adapter")


def chat(message: dict[str, Any], **choice: Any) -> dict[str, Any]:
    body = {"model": "base", "choices": [{"index": 0, "message": message} | choice]}
    return conform.reply(Operation.CHAT, body, CONTEXT)["choices"][0]


def event(operation: Operation, data: dict[str, Any], name: str | None = None) -> Any:
    (sent,) = conform.Stream(operation, CONTEXT).feed(name, data)
    return sent


def test_an_absent_field_is_absent_and_a_required_one_is_there() -> None:
    choice = chat({"role": "assistant", "content": "x", "audio": None, "reasoning": None})
    assert choice == {
        "index": 0,
        "message": {"role": "assistant", "content": "x", "refusal": None},
        "logprobs": None,
    }


def test_what_vllm_adds_stays_when_it_has_a_value() -> None:
    choice = chat({"role": "assistant", "content": "x", "reasoning": "hm"}, stop_reason="\n")
    assert choice["stop_reason"] == "\n"
    assert choice["message"]["reasoning"] == "hm"


def test_text_beside_a_tool_call_is_null_unless_there_is_some() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    assert chat({"role": "assistant", "content": "", "tool_calls": [call]})["message"] == {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "tool_calls": [call],
    }
    assert chat({"content": "so", "tool_calls": [call]})["message"]["content"] == "so"
    assert chat({"content": ""})["message"]["content"] == ""


def test_a_tool_call_delta_has_no_nulls_and_a_string_of_arguments() -> None:
    def delta(call: dict[str, Any]) -> Any:
        data = {"choices": [{"index": 0, "delta": {"content": None, "tool_calls": [call]}}]}
        return event(Operation.CHAT, data).data["choices"][0]

    first = delta({"index": 0, "id": "c", "type": None, "function": {"name": "f"}})
    assert first == {
        "index": 0,
        "finish_reason": None,
        "delta": {
            "tool_calls": [
                {
                    "index": 0,
                    "id": "c",
                    "type": "function",
                    "function": {"name": "f", "arguments": ""},
                }
            ]
        },
    }
    later = delta({"index": 0, "id": None, "function": {"name": None, "arguments": "{"}})
    assert later["delta"]["tool_calls"] == [{"index": 0, "function": {"arguments": "{"}}]


def test_the_caller_sees_the_name_it_asked_for() -> None:
    assert conform.reply(Operation.COMPLETION, {"model": "base"}, CONTEXT)["model"] == "adapter"
    sent = event(Operation.MESSAGES, {"type": "message_start", "message": {"model": "base"}}, "x")
    assert sent.data["message"]["model"] == "adapter"
    assert "model" not in event(Operation.CHAT, {"choices": []}).data


def test_a_response_that_was_cut_ends_as_incomplete() -> None:
    data = {"type": "response.completed", "response": {"status": "incomplete", "model": "base"}}
    sent = event(Operation.RESPONSES, data, "response.completed")
    assert sent.event == sent.data["type"] == "response.incomplete"
    assert sent.data["response"]["completed_at"] > 0


def test_the_schemas_of_a_client_are_not_touched() -> None:
    schema = {"type": "object", "default": None, "properties": {"a": {"const": None}}}
    tool = {"type": "function", "name": "f", "parameters": schema, "strict": None, "async": None}
    reply = conform.reply(
        Operation.RESPONSES,
        {
            "tools": [tool],
            "text": {"format": {"type": "json_schema", "schema": schema, "description": None}},
        },
        CONTEXT,
    )
    assert reply["tools"] == [
        {"type": "function", "name": "f", "parameters": schema, "strict": None}
    ]
    assert reply["text"]["format"] == {"type": "json_schema", "schema": schema}
    assert schema["default"] is None


def test_a_message_has_an_id_of_its_own_protocol() -> None:
    reply = conform.reply(Operation.MESSAGES, {"id": "chatcmpl-r1"}, CONTEXT)
    assert reply["id"] == "msg_r1"
    assert reply["stop_sequence"] is None


@pytest.mark.parametrize("operation", list(Operation))
@pytest.mark.parametrize("value", [None, "x", 5, [], [None], ["x"], {}, {"x": None}])
def test_unexpected_shapes_do_not_break_it(operation: Operation, value: Any) -> None:
    names = "choices usage response item part message content_block delta output content tools"
    names += " text data id type status"
    for name in names.split():
        conform.reply(operation, {name: value}, CONTEXT)
        event(operation, {name: value}, "x")
        event(operation, {"choices": [{"delta": {name: value}, "message": {name: value}}]})
