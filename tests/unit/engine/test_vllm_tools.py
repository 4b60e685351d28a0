"""Forced tool calls: what is asked of vLLM, and what is made of a cut reply. That the
arguments of real replies are valid is tested with the real engine."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from llmserve.engine.vllm import tools
from llmserve.errors import InvalidRequest, Unsupported
from llmserve.types import Operation

pytest.importorskip("vllm")
# torch says at its import that it is going to change.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
}


def chat(choice: Any, *functions: dict[str, Any]) -> dict[str, Any]:
    return {
        "tools": [{"type": "function", "function": function} for function in functions],
        "tool_choice": choice,
    }


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def test_a_request_that_forces_nothing_is_not_touched() -> None:
    for choice in ("auto", "none", None):
        body = chat(choice, {"name": "f", "parameters": SCHEMA})
        assert tools.prepare(Operation.CHAT, body) is body
    body = {"tools": [], "tool_choice": "required"}
    assert tools.prepare(Operation.CHAT, body) is body


def test_required_makes_every_tool_strict_and_leaves_the_body_alone() -> None:
    body = chat("required", {"name": "f", "parameters": SCHEMA}, {"name": "g", "strict": False})
    before = copy.deepcopy(body)
    prepared = [tool["function"] for tool in tools.prepare(Operation.CHAT, body)["tools"]]
    assert body == before
    assert prepared == [
        {"name": "f", "parameters": SCHEMA, "strict": True},
        {"name": "g", "parameters": {"type": "object", "properties": {}}, "strict": True},
    ]


def test_a_named_call_makes_that_tool_strict_only() -> None:
    body = chat(named("g"), {"name": "f", "parameters": {"type": 5}}, {"name": "g"})
    first, second = tools.prepare(Operation.CHAT, body)["tools"]
    assert "strict" not in first["function"]
    assert second["function"]["strict"] is True


@pytest.mark.parametrize(
    ("operation", "tool", "choice"),
    [
        (Operation.RESPONSES, {"type": "function", "name": "f", "parameters": SCHEMA}, "required"),
        (
            Operation.RESPONSES,
            {"type": "function", "name": "f", "parameters": SCHEMA, "strict": False},
            {"type": "function", "name": "f"},
        ),
        (Operation.MESSAGES, {"name": "f", "input_schema": SCHEMA}, {"type": "any"}),
        (Operation.MESSAGES, {"name": "f", "input_schema": SCHEMA}, {"type": "tool", "name": "f"}),
    ],
)
def test_the_other_protocols(operation: Operation, tool: Any, choice: Any) -> None:
    body = {"tools": [tool], "tool_choice": choice}
    assert tools.prepare(operation, body)["tools"] == [tool | {"strict": True}]


def test_arguments_are_an_object_also_where_the_schema_does_not_say_so() -> None:
    body = chat("required", {"name": "f", "parameters": {"properties": {}}})
    (tool,) = tools.prepare(Operation.CHAT, body)["tools"]
    assert tool["function"]["parameters"] == {"type": "object", "properties": {}}


@pytest.mark.parametrize(
    ("schema", "error"),
    [
        (
            {"type": "object", "properties": {"a": {"type": "integer", "multipleOf": 5}}},
            Unsupported,
        ),
        ({"type": "object", "properties": []}, InvalidRequest),
        ({"type": "no such type"}, InvalidRequest),
        ({"type": "object", "properties": {"a": {"type": "string", "format": []}}}, InvalidRequest),
    ],
)
def test_a_schema_that_cannot_be_enforced_is_refused_by_name(
    schema: Any, error: type[InvalidRequest]
) -> None:
    body = chat("required", {"name": "e"}, {"name": "f", "parameters": schema})
    with pytest.raises(error) as caught:
        tools.prepare(Operation.CHAT, body)
    assert caught.value.param == "tools[1].function.parameters"
    assert ".cc" not in caught.value.message


def test_white_space_is_bounded_in_the_grammar_and_nowhere_else() -> None:
    schema = {"type": "json_schema", "json_schema": {"type": "json_schema", "json_schema": 1}}
    tag = {"format": {"type": "or", "elements": [{"content": schema}, {"type": "any_text"}]}}
    bounded = json.loads(tools.bound_spaces(json.dumps(tag)))
    element = bounded["format"]["elements"][0]["content"]
    assert element == schema | {"max_whitespace_cnt": 1}
    xml = {"type": "json_schema", "json_schema": True, "style": "qwen_xml"}
    assert json.loads(tools.bound_spaces(json.dumps(xml))) == xml


def test_the_bounded_grammar_is_one_that_the_compiler_takes() -> None:
    import xgrammar

    tag = {
        "type": "structural_tag",
        "format": {
            "type": "tag",
            "begin": "<t>",
            "content": {"type": "json_schema"},
            "end": "</t>",
        },
    }
    tag["format"]["content"]["json_schema"] = SCHEMA  # type: ignore[index]
    xgrammar.Grammar.from_structural_tag(tools.bound_spaces(json.dumps(tag)))


def test_the_beginning_of_a_cut_call_is_not_text() -> None:
    body = chat("required", {"name": "f"})

    def choice(reason: str) -> dict[str, Any]:
        return {"message": {"content": "<tool_call>\n{"}, "finish_reason": reason}

    cut = tools.hide_cut_call(Operation.CHAT, body, {"choices": [choice("length")]})
    assert cut["choices"][0]["message"]["content"] is None
    whole = {"choices": [choice("stop")]}
    assert tools.hide_cut_call(Operation.CHAT, body, copy.deepcopy(whole)) == whole
    free = chat("auto", {"name": "f"})
    long = {"choices": [choice("length")]}
    assert tools.hide_cut_call(Operation.CHAT, free, copy.deepcopy(long)) == long


def test_complete_calls_before_a_cut_one_are_kept() -> None:
    body = chat("required", {"name": "f"})
    call = '<tool_call>\n{"name": "f", "arguments": {"a": {"b": "}"}}}\n</tool_call>\n'
    message = {"content": call + '<tool_call>\n{"name": "f", "argu'}
    reply = {"choices": [{"message": message, "finish_reason": "length"}]}
    (choice,) = tools.hide_cut_call(Operation.CHAT, body, reply)["choices"]
    assert choice["message"]["content"] is None
    (kept,) = choice["message"]["tool_calls"]
    assert kept["function"]["name"] == "f"
    assert json.loads(kept["function"]["arguments"]) == {"a": {"b": "}"}}
    assert kept["type"] == "function"
    assert kept["id"]


def test_many_tools_are_compiled_in_a_thread() -> None:
    small = chat("required", {"name": "f", "parameters": SCHEMA})
    assert not tools.is_large(small)
    assert not tools.is_large({})
    large = {"type": "object", "properties": {f"p{i}": {} for i in range(600)}}
    assert tools.is_large(chat("required", {"name": "f", "parameters": large}))


def test_a_cut_call_in_the_other_protocols() -> None:
    body: dict[str, Any] = {"tools": [{"name": "f"}], "tool_choice": {"type": "any"}}
    text = {"type": "text", "text": "<tool_call>"}
    reply = {"stop_reason": "max_tokens", "content": [text]}
    hidden = tools.hide_cut_call(Operation.MESSAGES, body, reply)
    assert hidden["content"] == [{"type": "text", "text": ""}]
    body = {"tools": [{"name": "f"}], "tool_choice": "required"}
    items = [{"type": "reasoning"}, {"type": "message"}]
    reply = {"status": "incomplete", "output": items}
    assert tools.hide_cut_call(Operation.RESPONSES, body, reply)["output"] == items[:1]
