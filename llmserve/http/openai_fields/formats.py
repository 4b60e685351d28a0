"""Checks of what shapes an answer: tools, tool choice, response formats, constraints."""

from __future__ import annotations

import json
import re
from typing import Any

from llmserve.engine.grammars import check_regex, check_schema, count_nodes
from llmserve.errors import InvalidRequest
from llmserve.http.openai_fields.content import by_type
from llmserve.http.openai_fields.values import (
    MAX_INT32,
    Check,
    anything,
    array,
    boolean,
    grammar_size,
    json_object,
    json_schema,
    missing,
    number,
    obj,
    one_of,
    only,
    text,
    unsupported_value,
    wrong,
)
from llmserve.settings import LimitSettings

# A name becomes part of a grammar and of a prompt. OpenAI takes 64 characters of
# [a-zA-Z0-9_-]; tools that come from MCP servers have longer ones, with dots.
_TOOL_NAME = re.compile(r"[a-zA-Z0-9_.:/-]{1,128}")
_STRING = text()
_TOOLS = 4


def tool_name(value: Any, path: str, limits: LimitSettings) -> None:  # noqa: ARG001
    if not isinstance(value, str) or not _TOOL_NAME.fullmatch(value):
        raise wrong(path, value, "1 to 128 letters, digits and _ - . : /")


def _most_tools(limits: LimitSettings) -> int:
    return limits.max_tools


def _tools(items: Check) -> Check:
    """Tools, each of which may be as large as a response format, and all of them together
    a few times that: the grammar of a forced call holds them all."""

    def check(value: Any, path: str, limits: LimitSettings) -> None:
        items(value, path, limits)
        for total, most, unit in (
            (len(json.dumps(value)), _TOOLS * limits.max_grammar_bytes, "bytes"),
            (count_nodes(value), _TOOLS * limits.max_schema_nodes, "subschemas and values"),
        ):
            if total > most:
                raise InvalidRequest(
                    f"{path} come to {total} {unit}; all of them together may have {most}.",
                    param=path,
                )

    return check


_FUNCTION: dict[str, Check] = {
    "name": tool_name,
    "description": _STRING,
    "parameters": json_schema,
    "strict": boolean,
}

chat_tools = _tools(
    array(
        by_type(
            {
                "function": obj(
                    {"type": anything, "function": obj(_FUNCTION, required=("name",))},
                    required=("type", "function"),
                )
            }
        ),
        1,
        _most_tools,
    )
)
response_tools = _tools(
    array(
        by_type({"function": obj({"type": anything, **_FUNCTION}, required=("type", "name"))}),
        0,
        _most_tools,
    )
)
_ANTHROPIC_TOOL = obj(
    {
        "type": anything,
        "name": tool_name,
        "description": _STRING,
        "input_schema": json_schema,
        "strict": boolean,
        "cache_control": json_object,
        # How the arguments are streamed, which is never held back here.
        "eager_input_streaming": boolean,
    },
    required=("name", "input_schema"),
)
anthropic_tools = _tools(
    array(by_type({"custom": _ANTHROPIC_TOOL}, default="custom"), 0, _most_tools)
)


def _choice(words: tuple[str, ...], named: Check) -> Check:
    """A word, or an object that names a function."""
    objects = by_type({"function": named})

    def check(value: Any, path: str, limits: LimitSettings) -> None:
        if isinstance(value, dict):
            objects(value, path, limits)
        elif not isinstance(value, str) or value not in words:
            raise wrong(path, value, f"one of {', '.join(map(repr, words))}, or a named function")

    return check


_WORDS = ("none", "auto", "required")
chat_tool_choice = _choice(
    _WORDS,
    obj(
        {"type": anything, "function": obj({"name": tool_name}, required=("name",))},
        required=("function",),
    ),
)
response_tool_choice = _choice(_WORDS, obj({"type": anything, "name": tool_name}, ("name",)))

_NO_PARALLEL: dict[str, Check] = {"type": anything, "disable_parallel_tool_use": boolean}
anthropic_tool_choice = by_type(
    {
        "auto": obj(_NO_PARALLEL),
        "any": obj(_NO_PARALLEL),
        "none": obj({"type": anything}),
        "tool": obj(_NO_PARALLEL | {"name": tool_name}, required=("name",)),
    }
)

_FORMAT_SCHEMA: dict[str, Check] = {
    "name": _STRING,
    "description": _STRING,
    "schema": json_schema,
    "strict": boolean,
}
_PLAIN_FORMATS: dict[str, Check] = {
    "text": obj({"type": anything}),
    "json_object": obj({"type": anything}),
}
response_format = by_type(
    _PLAIN_FORMATS
    | {
        "json_schema": obj(
            {"type": anything, "json_schema": obj(_FORMAT_SCHEMA, ("name", "schema"))},
            required=("json_schema",),
        )
    }
)
_VERBOSITY = only(["medium"], "how long answers are is up to the model")
response_text = obj(
    {
        "format": by_type(
            _PLAIN_FORMATS
            | {"json_schema": obj({"type": anything, **_FORMAT_SCHEMA}, ("name", "schema"))}
        ),
        "verbosity": _VERBOSITY,
    }
)
verbosity = _VERBOSITY

_EFFORT = one_of("none", "minimal", "low", "medium", "high", "xhigh", "max")
reasoning_effort = _EFFORT
response_reasoning = obj(
    {"effort": _EFFORT, "summary": only(["auto"], "reasoning is shown as it is")},
    refused={"generate_summary": "reasoning is shown as it is"},
)
anthropic_output = obj(
    {
        "effort": one_of("low", "medium", "high", "xhigh", "max"),
        "format": by_type(
            {"json_schema": obj({"type": anything, "schema": json_schema}, required=("schema",))}
        ),
    }
)


def thinking(value: Any, path: str, limits: LimitSettings) -> None:
    _THINKING(value, path, limits)
    budget = value.get("budget_tokens")
    if value["type"] == "enabled" and not (_is_int(budget) and 1024 <= budget <= MAX_INT32):
        raise wrong(f"{path}.budget_tokens", budget, "an integer from 1024")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


# Reasoning is always shown, which is what both values come to.
_DISPLAY = only(["summarized", "updates"], "reasoning is always shown")
_THINKING = by_type(
    {
        "enabled": obj({"type": anything, "budget_tokens": anything, "display": _DISPLAY}),
        "disabled": obj({"type": anything}),
        "adaptive": obj({"type": anything, "display": _DISPLAY}),
    }
)


def structured_outputs(value: Any, path: str, limits: LimitSettings) -> None:
    """vLLM's own constraint field: exactly one kind of constraint."""
    _STRUCTURED(value, path, limits)
    kinds = [kind for kind in ("json", "regex", "choice", "json_object") if kind in value]
    if len(kinds) != 1:
        raise InvalidRequest(
            f"{path} must have exactly one of json, regex, choice and json_object.", param=path
        )


def _schema_or_text(value: Any, path: str, limits: LimitSettings) -> None:
    if not isinstance(value, dict | str) or not value:
        raise wrong(path, value, "a JSON schema")
    grammar_size(value, path, limits)
    try:
        schema = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        schema = None
    if not isinstance(schema, dict):
        raise wrong(path, value, "a JSON schema")
    check_schema(schema, path, limits)


def _regex(value: Any, path: str, limits: LimitSettings) -> None:
    text(1)(value, path, limits)
    grammar_size(value, path, limits)
    if "\0" in value:
        raise wrong(path, value, "a regular expression without NUL")
    check_regex(value, path, limits)


def _choices(value: Any, path: str, limits: LimitSettings) -> None:
    array(text(1), 1)(value, path, limits)
    grammar_size(value, path, limits)


_STRUCTURED = obj(
    {
        "json": _schema_or_text,
        "regex": _regex,
        "choice": _choices,
        "json_object": only([True], "anything else is no constraint"),
    },
    refused=dict.fromkeys(
        ("grammar", "structural_tag", "whitespace_pattern"), "use json, regex or choice"
    ),
)

_TEMPLATE_INTERNALS = frozenset(
    [
        "chat_template",
        "chat_template_kwargs",
        "conversation",
        "messages",
        "documents",
        "tools",
        "tokenize",
        "add_generation_prompt",
        "continue_final_message",
        "padding",
        "truncation",
        "max_length",
        "return_tensors",
        "return_dict",
        "return_assistant_tokens_mask",
        "tokenizer_kwargs",
    ]
)


def template_arguments(value: Any, path: str, limits: LimitSettings) -> None:  # noqa: ARG001
    """Switches that a model's own chat template reads (``enable_thinking``): plain values,
    and none that the renderer itself would take for an instruction."""
    if not isinstance(value, dict):
        raise wrong(path, value, "an object")
    for name, entry in value.items():
        if not name.isidentifier() or name.startswith("_") or name in _TEMPLATE_INTERNALS:
            raise unsupported_value(path, name, "allowed are switches of the model's own template")
        if isinstance(entry, dict | list) or (isinstance(entry, str) and len(entry) > 256):
            raise wrong(f"{path}.{name}", entry, "a boolean, a number or a short string")


def logit_bias(value: Any, path: str, limits: LimitSettings) -> None:
    """Token ids (as JSON keys: digits) to biases from -100 to 100."""
    if not isinstance(value, dict):
        raise wrong(path, value, "an object of token ids and biases")
    if len(value) > limits.max_logit_bias:
        raise wrong(path, value, f"an object of at most {limits.max_logit_bias} entries")
    for key, bias in value.items():
        if not (key.isascii() and key.isdigit() and len(key) <= 10 and int(key) <= MAX_INT32):
            raise InvalidRequest(
                f"{path}: the key {key[:20]!r} is not a token id (0 to {MAX_INT32}).", param=path
            )
        _BIAS(bias, f"{path}.{key}", limits)


_BIAS = number(-100, 100)


def stop(value: Any, path: str, limits: LimitSettings) -> None:
    """A string, or an array of strings."""
    if isinstance(value, str):
        value = [value]
    elif not isinstance(value, list):
        raise wrong(path, value, "a string or an array of strings")
    stops(value, path, limits)


stops = array(text(1, lambda limits: limits.max_stop_chars), 0, lambda x: x.max_stop_strings)


def call_needs_tools(body: dict[str, Any]) -> None:
    """A tool choice is about tools that are there, by their names."""
    choice, tools = body.get("tool_choice"), body.get("tools")
    kind = choice.get("type") if isinstance(choice, dict) else choice
    if choice is None or kind == "none":
        return
    if not tools:
        raise missing("tools", "is required with tool_choice")
    function = choice.get("function", choice) if isinstance(choice, dict) else {}
    wanted = function.get("name")
    names = [tool.get("function", tool).get("name") for tool in tools]
    if wanted is not None and wanted not in names:
        raise InvalidRequest(
            f"tool_choice names {wanted!r}, which is not one of tools.", param="tool_choice"
        )
