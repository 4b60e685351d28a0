"""Checks of what models read: messages, content parts, input items."""

from __future__ import annotations

import json
from typing import Any

from llmserve.errors import InvalidRequest, Unsupported
from llmserve.http.openai_fields.values import (
    Check,
    anything,
    array,
    boolean,
    json_object,
    missing,
    obj,
    one_of,
    text,
    wrong,
)
from llmserve.settings import LimitSettings

_MEDIA = frozenset(
    [
        "image",
        "image_url",
        "input_image",
        "audio",
        "audio_url",
        "input_audio",
        "video",
        "video_url",
        "file",
        "input_file",
        "document",
        "image_embeds",
        "audio_embeds",
    ]
)
_STRING = text()
_REQUIRED_STRING = text(1)


def _most_messages(limits: LimitSettings) -> int:
    return limits.max_messages


def by_type(kinds: dict[str, Check], default: str | None = None) -> Check:
    """An object whose ``type`` says which check it must pass."""

    def check(value: Any, path: str, limits: LimitSettings) -> None:
        if not isinstance(value, dict):
            raise wrong(path, value, "an object")
        kind = default if value.get("type") is None else value["type"]
        if not isinstance(kind, str) or not kind:
            raise wrong(f"{path}.type", kind, f"one of {', '.join(sorted(kinds))}")
        if kind in _MEDIA and kind not in kinds:
            raise Unsupported(
                f"{path}.type: {kind!r}: multimodal input is not supported; send text.",
                param=f"{path}.type",
                code="unsupported_value",
            )
        if kind not in kinds:
            raise Unsupported(
                f"{path}.type: {kind[:60]!r} is not supported; allowed is "
                f"{', '.join(sorted(kinds))}.",
                param=f"{path}.type",
                code="unsupported_value",
            )
        kinds[kind](value, path, limits)

    return check


def text_or_parts(part: Check) -> Check:
    """A string, or an array of content parts."""
    parts = array(part)

    def check(value: Any, path: str, limits: LimitSettings) -> None:
        if not isinstance(value, str | list):
            raise wrong(path, value, "a string or an array of content parts")
        if isinstance(value, list):
            parts(value, path, limits)

    return check


def arguments(value: Any, path: str, limits: LimitSettings) -> None:  # noqa: ARG001
    """The arguments of an earlier call: a string that holds a JSON object. Chat templates
    are given the object, so broken ones would fail there, without a name."""
    if not isinstance(value, str):
        raise wrong(path, value, "a string that holds a JSON object")
    try:
        parsed = json.loads(value) if value.strip() else {}
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        raise wrong(path, value, "a string that holds a JSON object")


# Chat messages

_TEXT_PART = obj({"type": anything, "text": _STRING}, required=("text",))
_REFUSAL_PART = obj({"type": anything, "refusal": _STRING}, required=("refusal",))
_USER_CONTENT = text_or_parts(by_type({"text": _TEXT_PART}))
_ASSISTANT_CONTENT = text_or_parts(by_type({"text": _TEXT_PART, "refusal": _REFUSAL_PART}))
_CALLED = obj({"name": _REQUIRED_STRING, "arguments": arguments}, required=("name", "arguments"))
_TOOL_CALL = obj(
    # ``index`` is in calls that a client put together from a stream.
    {"id": _STRING, "type": one_of("function"), "function": _CALLED, "index": anything},
    required=("id", "type", "function"),
)
_LEGACY = {
    "function_call": "it is the old form of tool_calls",
    "audio": "this server makes and reads text only",
}


def _message(fields: dict[str, Check], required: tuple[str, ...] = ("content",)) -> Check:
    return obj({"role": anything, "name": _STRING} | fields, required=required, refused=_LEGACY)


_MESSAGES: dict[str, Check] = {
    "system": _message({"content": _USER_CONTENT}),
    "developer": _message({"content": _USER_CONTENT}),
    "user": _message({"content": _USER_CONTENT}),
    "tool": _message(
        {"content": _USER_CONTENT, "tool_call_id": _STRING}, ("content", "tool_call_id")
    ),
    "assistant": _message(
        {
            "content": _ASSISTANT_CONTENT,
            "tool_calls": array(_TOOL_CALL),
            "refusal": _STRING,
            # Replies are sent back as they came.
            "annotations": array(anything, 0, 0),
            "reasoning": _STRING,
            "reasoning_content": _STRING,
        },
        (),
    ),
}


def chat_message(value: Any, path: str, limits: LimitSettings) -> None:
    if not isinstance(value, dict):
        raise wrong(path, value, "an object with role and content")
    role = value.get("role")
    if role is None:
        raise missing(f"{path}.role")
    if role == "function":
        raise Unsupported(
            f"{path}.role: 'function' is the old form of 'tool'.", param=f"{path}.role"
        )
    one_of(*_MESSAGES)(role, f"{path}.role", limits)
    _MESSAGES[role](value, path, limits)
    if role == "assistant" and "content" not in value and not value.get("tool_calls"):
        raise missing(f"{path}.content", "is required unless tool_calls has one")


chat_messages = array(chat_message, 1, _most_messages)


# Responses input items

_OUTPUT_TEXT = obj(
    {"type": anything, "text": _STRING, "annotations": anything, "logprobs": anything},
    required=("text",),
)
_INPUT_PART = by_type(
    {
        "input_text": _TEXT_PART,
        "text": _TEXT_PART,
        "output_text": _OUTPUT_TEXT,
        "refusal": _REFUSAL_PART,
    }
)
_ITEM = {"type": anything, "id": _STRING, "status": _STRING}
_INPUT_MESSAGE = obj(
    _ITEM
    | {
        "role": one_of("system", "developer", "user", "assistant"),
        "content": text_or_parts(_INPUT_PART),
        "phase": anything,
    },
    required=("role", "content"),
)
_REASONING_TEXT = obj({"type": anything, "text": _STRING}, required=("text",))
_INPUT_ITEM = by_type(
    {
        "message": _INPUT_MESSAGE,
        "function_call": obj(
            _ITEM | {"call_id": _REQUIRED_STRING, "name": _REQUIRED_STRING, "arguments": arguments},
            required=("call_id", "name", "arguments"),
        ),
        "function_call_output": obj(
            _ITEM | {"call_id": _REQUIRED_STRING, "output": text_or_parts(_INPUT_PART)},
            required=("call_id", "output"),
        ),
        "reasoning": obj(
            _ITEM
            | {
                "summary": array(_REASONING_TEXT),
                "content": array(_REASONING_TEXT),
                "encrypted_content": _STRING,
            },
            required=("summary",),
        ),
    },
    default="message",
)


_INPUT_ITEMS = array(_INPUT_ITEM, 1, _most_messages)


def response_input(value: Any, path: str, limits: LimitSettings) -> None:
    if isinstance(value, str):
        _REQUIRED_STRING(value, path, limits)
    elif isinstance(value, list):
        _INPUT_ITEMS(value, path, limits)
    else:
        raise wrong(path, value, "a string or an array of input items")


# Anthropic messages

# ``cache_control`` asks for prompt caching, which vLLM does by itself.
_BLOCK: dict[str, Check] = {"type": anything, "cache_control": json_object}
_TEXT_BLOCK = obj(
    _BLOCK | {"text": _STRING},
    required=("text",),
    refused={"citations": "there are no documents to cite"},
)
_TOOL_RESULT = obj(
    _BLOCK
    | {
        "tool_use_id": _REQUIRED_STRING,
        "content": text_or_parts(by_type({"text": _TEXT_BLOCK})),
        "is_error": boolean,
    },
    required=("tool_use_id",),
)
_BLOCKS: dict[str, dict[str, Check]] = {
    "system": {"text": _TEXT_BLOCK},
    "user": {"text": _TEXT_BLOCK, "tool_result": _TOOL_RESULT},
    "assistant": {
        "text": _TEXT_BLOCK,
        "tool_use": obj(
            _BLOCK | {"id": _REQUIRED_STRING, "name": _REQUIRED_STRING, "input": json_object},
            required=("id", "name", "input"),
        ),
        "thinking": obj(
            _BLOCK | {"thinking": _STRING, "signature": _STRING}, required=("thinking",)
        ),
        "redacted_thinking": obj(_BLOCK | {"data": _STRING}, required=("data",)),
    },
}
_CONTENT = {role: text_or_parts(by_type(kinds)) for role, kinds in _BLOCKS.items()}

system_prompt = _CONTENT["system"]


def anthropic_message(value: Any, path: str, limits: LimitSettings) -> None:
    if not isinstance(value, dict):
        raise wrong(path, value, "an object with role and content")
    role = value.get("role")
    if role is None:
        raise missing(f"{path}.role")
    one_of(*_CONTENT)(role, f"{path}.role", limits)
    fields: dict[str, Check] = {"role": anything, "content": _CONTENT[role]}
    obj(fields, required=("content",))(value, path, limits)


anthropic_messages = array(anthropic_message, 1, _most_messages)


def metadata(value: Any, path: str, limits: LimitSettings) -> None:  # noqa: ARG001
    """Strings by name, for the caller's own book-keeping."""
    if not isinstance(value, dict) or not all(isinstance(entry, str) for entry in value.values()):
        raise InvalidRequest(f"{path} must be an object of strings.", param=path)
