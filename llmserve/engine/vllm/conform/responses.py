"""The Responses API: the response object and the events around it."""

from __future__ import annotations

import time
from typing import Any

from llmserve.engine.protocol import Json
from llmserve.engine.vllm.conform.nulls import drop_nulls, objects

# What OpenAI's Response object has, with the value that means "none" there.
_RESPONSE_DEFAULTS: Json = {
    "error": None,
    "incomplete_details": None,
    "instructions": None,
    "metadata": None,
    "previous_response_id": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "reasoning": None,
    "safety_identifier": None,
    "prompt_cache_key": None,
    "completed_at": None,
    "temperature": None,
    "top_p": None,
    "top_logprobs": 0,
    # This server keeps no responses, whatever the default of the protocol.
    "store": False,
}
_RESPONSE_NULLS = frozenset(key for key, value in _RESPONSE_DEFAULTS.items() if value is None)


def response(body: Json) -> Json:
    drop_nulls(body, _RESPONSE_NULLS)
    for key, value in _RESPONSE_DEFAULTS.items():
        body.setdefault(key, value)
    if body.get("status") in ("completed", "incomplete") and body["completed_at"] is None:
        body["completed_at"] = int(time.time())
    text = body.setdefault("text", {})
    if isinstance(text, dict):
        drop_nulls(text)
        output_format = text.setdefault("format", {"type": "text"})
        if isinstance(output_format, dict):
            drop_nulls(output_format)
    for tool in objects(body.get("tools")):
        # A function tool must show both, as null when it has none.
        drop_nulls(tool, frozenset({"strict", "parameters"}))
    for item in objects(body.get("output")):
        _response_item(item)
    _response_usage(body.get("usage"))
    return body


def _response_item(item: Json) -> None:
    drop_nulls(item)
    for part in objects(item.get("content")):
        _response_part(part)
    if item.get("type") == "reasoning":
        item.setdefault("summary", [])


def _response_part(part: Json) -> None:
    drop_nulls(part)
    if part.get("type") == "output_text":
        part.setdefault("annotations", [])
        for token in objects(part.setdefault("logprobs", [])):
            # The schema wants the bytes of each token; without them, nothing is known.
            for entry in (token, *objects(token.setdefault("top_logprobs", []))):
                entry["bytes"] = entry.get("bytes") or []


def _response_usage(usage: Any) -> None:
    if not isinstance(usage, dict):
        return
    for key, required in (
        ("input_tokens_details", ("cached_tokens", "cache_write_tokens")),
        ("output_tokens_details", ("reasoning_tokens",)),
    ):
        details = usage.get(key)
        details = usage[key] = details if isinstance(details, dict) else {}
        drop_nulls(details)
        for field in required:
            details.setdefault(field, 0)
        # vLLM's book-keeping per turn of a tool loop: empty unless it ran one.
        for field in [field for field, value in details.items() if value == []]:
            del details[field]


def response_event(data: Json) -> Json:
    kind = data.get("type")
    drop_nulls(data)
    if isinstance(whole := data.get("response"), dict):
        response(whole)
        if kind == "response.completed" and whole.get("status") == "incomplete":
            data["type"] = "response.incomplete"
    elif isinstance(item := data.get("item"), dict):
        _response_item(item)
    elif isinstance(part := data.get("part"), dict):
        _response_part(part)
    elif kind in ("response.output_text.delta", "response.output_text.done"):
        data.setdefault("logprobs", [])
    elif kind == "error":
        data.setdefault("code", None)
        data.setdefault("param", None)
    return data
