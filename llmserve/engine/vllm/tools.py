"""Forced tool calls whose arguments are valid under the tool's own schema.

vLLM constrains the *envelope* of a named or required call to the format of the model's
tool parser, and the arguments only when the tool says ``strict: true``: otherwise any
JSON value passes, and a small model answers ``get_weather("Paris")`` with a bare string.
(Messages then fails with a validation error, because the arguments are no object.) Three
functions close the gap, with vLLM's own grammar builders and parsers doing the work:

``prepare``        before vLLM parses the request: marks the tools of a forced call
                   strict, and refuses a schema that the grammar cannot enforce.
``bound_spaces``   before the request reaches the engine: the grammar of a tool call has
                   no bound on white space (``disable_any_whitespace`` does not reach
                   it), and small models then write newlines until the context is full.
``hide_cut_call``  after a reply that ran out of tokens: the beginning of a call that
                   vLLM could not parse is not an answer in words.
"""

from __future__ import annotations

import json
import re
from typing import Any
from uuid import uuid4

from llmserve.engine.grammars import count_nodes
from llmserve.engine.protocol import Json
from llmserve.engine.vllm.schemas import check_enforced
from llmserve.errors import InvalidRequest
from llmserve.types import Operation

_MAX_SPACES = 1
_MANY_NODES = 500
# What the grammar compiler puts before its messages: a time, and a place in its source.
_SOURCE_POSITION = re.compile(r"^\[[\d:]+\] \S+:\d+: ")
_CALL = re.compile(r"<tool_call>\s*(\{.*?\})\s*</tool_call>", re.DOTALL)
# Where each protocol keeps the schema of a function tool: "tools[i].<path>".
_SCHEMA_FIELD = {
    Operation.CHAT: "parameters",
    Operation.RESPONSES: "parameters",
    Operation.MESSAGES: "input_schema",
}


def forced(operation: Operation, body: Json) -> bool:
    """Whether the request leaves the model no choice but to call a tool."""
    choice = body.get("tool_choice")
    if not body.get("tools") or operation not in _SCHEMA_FIELD:
        return False
    if operation is Operation.MESSAGES:
        return isinstance(choice, dict) and choice.get("type") in ("any", "tool")
    return choice == "required" or (isinstance(choice, dict) and choice.get("type") == "function")


def prepare(operation: Operation, body: Json) -> Json:
    """The body to give to vLLM: the same one, or, when a call is forced, a copy in which
    the tools that can be called are strict and have an object schema.

    An explicit ``strict: false`` is overridden: valid arguments are within what it asks
    for. Raises ``Unsupported`` for a schema that cannot be enforced.
    """
    if not forced(operation, body):
        return body
    name = _named(body["tool_choice"])
    tools = [
        _strict(operation, tool, index) if name in (None, _tool_name(tool)) else tool
        for index, tool in enumerate(body["tools"])
    ]
    return body | {"tools": tools}


def is_large(body: Json) -> bool:
    """Whether ``prepare`` has so much to compile that it belongs into a thread."""
    tools = body.get("tools")
    return bool(tools) and count_nodes(tools) > _MANY_NODES


def bound_spaces(structural_tag: str) -> str:
    """The structural tag (JSON) with at most one white space between the tokens of the
    JSON in it. Tags of vLLM's older form, which has no such option, stay as they are."""
    tag = json.loads(structural_tag)
    _bound(tag)
    return json.dumps(tag)


def hide_cut_call(operation: Operation, body: Json, reply: Json) -> Json:
    """The reply to ``body`` without the beginning of a forced call that ran into
    ``max_tokens``: vLLM gives it back as text (``<tool_call>\\n{"n``). Changes ``reply``
    in place; its finish reason says that it was cut."""
    if not forced(operation, body):
        return reply
    if operation is Operation.CHAT:
        for choice in reply.get("choices", []):
            if choice.get("finish_reason") == "length":
                message = choice["message"]
                if calls := _complete(message.get("content")):
                    message["tool_calls"] = calls
                message["content"] = None
    elif operation is Operation.RESPONSES and reply.get("status") == "incomplete":
        reply["output"] = [item for item in reply["output"] if item.get("type") != "message"]
    elif operation is Operation.MESSAGES and reply.get("stop_reason") == "max_tokens":
        blocks = [block for block in reply["content"] if block.get("type") != "text"]
        reply["content"] = blocks or [{"type": "text", "text": ""}]
    return reply


def _complete(text: Any) -> list[Json]:
    """The calls before the one that was cut: vLLM's parser gives up on all of them. Only
    the format of the default parser is known here."""
    calls = []
    for found in _CALL.finditer(text if isinstance(text, str) else ""):
        try:
            call = json.loads(found[1])
            name, arguments = call["name"], call.get("arguments", {})
        except (ValueError, TypeError, KeyError):
            continue
        function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
        calls.append(
            {"id": f"chatcmpl-tool-{uuid4().hex}", "type": "function", "function": function}
        )
    return calls


def _named(choice: Any) -> str | None:
    """The name of the one tool that must be called; ``None`` when any of them will do."""
    if not isinstance(choice, dict):
        return None
    function = choice.get("function")
    named = function.get("name") if isinstance(function, dict) else choice.get("name")
    return named if isinstance(named, str) else None


def _tool_name(tool: Any) -> str | None:
    if not isinstance(tool, dict):
        return None
    function = tool.get("function")
    name = function.get("name") if isinstance(function, dict) else tool.get("name")
    return name if isinstance(name, str) else None


def _strict(operation: Operation, tool: Any, index: int) -> Any:
    """A strict copy of a function tool; anything else is vLLM's to judge."""
    if not isinstance(tool, dict):
        return tool
    field, path = _SCHEMA_FIELD[operation], f"tools[{index}]"
    if operation is Operation.RESPONSES and tool.get("type") != "function":
        return tool
    if operation is not Operation.CHAT:
        return tool | {"strict": True, field: _object_schema(tool.get(field), f"{path}.{field}")}
    function = tool.get("function")
    if not isinstance(function, dict):
        return tool
    schema = _object_schema(function.get(field), f"{path}.function.{field}")
    return tool | {"function": function | {"strict": True, field: schema}}


def _object_schema(schema: Any, path: str) -> Any:
    """The schema, made to say that arguments are an object, as they always are."""
    if schema is None or schema == {}:
        return {"type": "object", "properties": {}}
    if not isinstance(schema, dict):
        return schema
    _check_enforceable(schema, path)
    return schema if "type" in schema or "$ref" in schema else schema | {"type": "object"}


def _check_enforceable(schema: Json, path: str) -> None:
    """vLLM checks the keywords of response formats, and not those of tools; and it says
    of a broken tool schema only that there is one."""
    import xgrammar

    check_enforced(schema, path)
    try:
        xgrammar.Grammar.from_json_schema(json.dumps(schema))
    except (RuntimeError, TypeError) as error:
        detail = _SOURCE_POSITION.sub("", str(error))[:200]
        raise InvalidRequest(f"{path} is not a JSON schema: {detail}", param=path) from error


def _bound(node: Any) -> None:
    if isinstance(node, dict):
        if node.get("type") == "json_schema" and "json_schema" in node:
            # The JSON schema in here is the client's: not to be searched for tags.
            if node.get("style", "json") == "json":
                node["max_whitespace_cnt"] = _MAX_SPACES
            return
        for value in node.values():
            _bound(value)
    elif isinstance(node, list):
        for item in node:
            _bound(item)
