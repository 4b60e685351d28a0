"""Makes vLLM's replies and stream events what OpenAI's and Anthropic's schemas say.

vLLM's reply models write a null for every field that has no value; OpenAI's schemas have
few nulls: a field without a value is absent. Beyond the nulls there are fields that the
schemas require and vLLM leaves out, and an event with the wrong name. What vLLM adds
(``stop_reason``, ``reasoning``, ``token_ids``, ...) stays when it has a value, because
the schemas allow additional properties.

``reply`` and ``Stream`` take what vLLM said as JSON objects and **change them in place**:
this is on the way of every token. Nothing here imports vLLM, and nothing here raises on
an object of an unexpected shape: it is left as it is.

Two things in the schemas cannot be met by an honest server, OpenAI's own included: a
completion chunk before the last has ``finish_reason: null``, and with ``echo`` the first
prompt token has no log probability (null in ``token_logprobs`` and ``top_logprobs``).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from llmserve.engine.protocol import Context, Event, Json
from llmserve.types import Operation

# Nullable and required (or meaningful as null): everything else that is null is dropped.
_CHAT_CHOICE = frozenset({"logprobs", "finish_reason"})
_CHUNK_CHOICE = frozenset({"finish_reason"})
_COMPLETION_CHOICE = frozenset({"logprobs", "finish_reason"})
_MESSAGE = frozenset({"content", "refusal"})
_ANTHROPIC_MESSAGE = frozenset({"stop_reason", "stop_sequence"})
_NOTHING: frozenset[str] = frozenset()

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


def reply(operation: Operation, body: Json, context: Context) -> Json:
    """The whole (non-streaming) reply to a request of that operation."""
    conform = _REPLIES.get(operation, _drop_nulls)
    return _named(conform(body), context)


class Stream:
    """The events of one streaming reply."""

    def __init__(self, operation: Operation, context: Context) -> None:
        self._conform = _EVENTS.get(operation, _drop_nulls)
        self._context = context

    def feed(self, name: str | None, data: Json) -> tuple[Event, ...]:
        """The events to send for one of vLLM's. ``name`` is what vLLM called it, ``None``
        where the protocol does not name events. Responses and Messages repeat the name in
        ``type``, and that is the right one: a Responses stream that was cut short ends
        with ``response.incomplete``, which vLLM calls ``response.completed``."""
        data = self._conform(data)
        _named(data, self._context)
        return (Event(data, data.get("type", name) if name is not None else None),)


def _named(body: Json, context: Context) -> Json:
    """The reply under the name that the caller chose for the model."""
    for holder in (body, body.get("response"), body.get("message")):
        if isinstance(holder, dict) and "model" in holder:
            holder["model"] = context.model
    return body


def _drop_nulls(obj: Json, keep: frozenset[str] = _NOTHING) -> Json:
    """Remove the null fields of one object, not of the objects in it."""
    for key in [key for key, value in obj.items() if value is None and key not in keep]:
        del obj[key]
    return obj


def _objects(value: Any) -> list[Json]:
    """The objects of a JSON array; none when it is something else."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _usage(body: Json) -> None:
    usage = body.get("usage")
    if isinstance(usage, dict):
        _drop_nulls(usage)
        for key in ("prompt_tokens", "completion_tokens", "total_tokens"):
            usage.setdefault(key, 0)
        for key in ("prompt_tokens_details", "completion_tokens_details"):
            if isinstance(details := usage.get(key), dict):
                _drop_nulls(details)


# Chat completions


def _chat_reply(body: Json) -> Json:
    _drop_nulls(body)
    _usage(body)
    for choice in _objects(body.get("choices")):
        _drop_nulls(choice, _CHAT_CHOICE)
        choice.setdefault("logprobs", None)
        _chat_logprobs(choice)
        if isinstance(message := choice.get("message"), dict):
            _chat_message(message)
    return body


def _chat_message(message: Json) -> None:
    _drop_nulls(message, _MESSAGE)
    message.setdefault("content", None)
    message.setdefault("refusal", None)
    if message.get("tool_calls"):
        # vLLM writes "" beside a forced call; clients tell a call from text by the null.
        message["content"] = message["content"] or None
        for call in _objects(message["tool_calls"]):
            _drop_nulls(call)


def _chat_chunk(data: Json) -> Json:
    _drop_nulls(data)
    if "usage" in data:
        _usage(data)
    for choice in _objects(data.get("choices")):
        _drop_nulls(choice, _CHUNK_CHOICE)
        choice.setdefault("finish_reason", None)
        if "logprobs" in choice:
            _chat_logprobs(choice)
        if isinstance(delta := choice.get("delta"), dict):
            _drop_nulls(delta)
            if "tool_calls" in delta:
                _tool_call_deltas(delta["tool_calls"])
    return data


def _tool_call_deltas(calls: Any) -> None:
    """Clients read a ``"name": null`` as a new, nameless call, and add the arguments of
    the first delta to a string: they must be one, as OpenAI sends it."""
    for call in _objects(calls):
        _drop_nulls(call)
        if isinstance(function := call.get("function"), dict):
            _drop_nulls(function)
            if "name" in function:
                function.setdefault("arguments", "")
                call.setdefault("type", "function")


def _chat_logprobs(choice: Json) -> None:
    logprobs = choice.get("logprobs")
    if isinstance(logprobs, dict):
        logprobs.setdefault("content", None)
        logprobs.setdefault("refusal", None)
        for token in _objects(logprobs["content"]):
            token.setdefault("bytes", None)
            for other in _objects(token.setdefault("top_logprobs", [])):
                other.setdefault("bytes", None)


# Completions (the chunks have the shape of the whole)


def _completion(body: Json) -> Json:
    _drop_nulls(body)
    _usage(body)
    for choice in _objects(body.get("choices")):
        _drop_nulls(choice, _COMPLETION_CHOICE)
        choice.setdefault("logprobs", None)
        choice.setdefault("finish_reason", None)
    return body


# Responses


def _response(body: Json) -> Json:
    _drop_nulls(body, _RESPONSE_NULLS)
    for key, value in _RESPONSE_DEFAULTS.items():
        body.setdefault(key, value)
    if body.get("status") in ("completed", "incomplete") and body["completed_at"] is None:
        body["completed_at"] = int(time.time())
    text = body.setdefault("text", {})
    if isinstance(text, dict):
        _drop_nulls(text)
        output_format = text.setdefault("format", {"type": "text"})
        if isinstance(output_format, dict):
            _drop_nulls(output_format)
    for tool in _objects(body.get("tools")):
        # A function tool must show both, as null when it has none.
        _drop_nulls(tool, frozenset({"strict", "parameters"}))
    for item in _objects(body.get("output")):
        _response_item(item)
    _response_usage(body.get("usage"))
    return body


def _response_item(item: Json) -> None:
    _drop_nulls(item)
    for part in _objects(item.get("content")):
        _response_part(part)
    if item.get("type") == "reasoning":
        item.setdefault("summary", [])


def _response_part(part: Json) -> None:
    _drop_nulls(part)
    if part.get("type") == "output_text":
        part.setdefault("annotations", [])
        for token in _objects(part.setdefault("logprobs", [])):
            # The schema wants the bytes of each token; without them, nothing is known.
            for entry in (token, *_objects(token.setdefault("top_logprobs", []))):
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
        _drop_nulls(details)
        for field in required:
            details.setdefault(field, 0)
        # vLLM's book-keeping per turn of a tool loop: empty unless it ran one.
        for field in [field for field, value in details.items() if value == []]:
            del details[field]


def _response_event(data: Json) -> Json:
    kind = data.get("type")
    _drop_nulls(data)
    if isinstance(response := data.get("response"), dict):
        _response(response)
        if kind == "response.completed" and response.get("status") == "incomplete":
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


# Embeddings


def _embeddings(body: Json) -> Json:
    _drop_nulls(body)
    if isinstance(usage := body.get("usage"), dict):
        _drop_nulls(usage)
        # An embedding has no completion; vLLM's usage object says 0 of them.
        usage.pop("completion_tokens", None)
    return body


# Anthropic messages


def _message(body: Json) -> Json:
    _drop_nulls(body, _ANTHROPIC_MESSAGE)
    body.setdefault("stop_reason", None)
    body.setdefault("stop_sequence", None)
    identity = body.get("id")
    if isinstance(identity, str):
        body["id"] = "msg_" + identity.removeprefix("chatcmpl-").removeprefix("msg_")
    for block in _objects(body.get("content")):
        _content_block(block)
    if isinstance(usage := body.get("usage"), dict):
        _drop_nulls(usage)
    return body


def _content_block(block: Json) -> None:
    _drop_nulls(block)
    if block.get("type") == "thinking":
        block.setdefault("signature", "")
    elif block.get("type") == "tool_use":
        block.setdefault("input", {})


def _message_event(data: Json) -> Json:
    _drop_nulls(data)
    if isinstance(message := data.get("message"), dict):
        _message(message)
    if isinstance(block := data.get("content_block"), dict):
        _content_block(block)
    if isinstance(delta := data.get("delta"), dict):
        if data.get("type") == "message_delta":
            delta.setdefault("stop_reason", None)
            delta.setdefault("stop_sequence", None)
        else:
            _drop_nulls(delta)
    if isinstance(usage := data.get("usage"), dict):
        _drop_nulls(usage)
    return data


_REPLIES: dict[Operation, Callable[[Json], Json]] = {
    Operation.CHAT: _chat_reply,
    Operation.COMPLETION: _completion,
    Operation.RESPONSES: _response,
    Operation.EMBEDDINGS: _embeddings,
    Operation.MESSAGES: _message,
}
_EVENTS: dict[Operation, Callable[[Json], Json]] = {
    Operation.CHAT: _chat_chunk,
    Operation.COMPLETION: _completion,
    Operation.RESPONSES: _response_event,
    Operation.MESSAGES: _message_event,
}
