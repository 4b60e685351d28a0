"""Chat completions, completions and embeddings."""

from __future__ import annotations

from typing import Any

from llmserve.engine.protocol import Json
from llmserve.engine.vllm.conform.nulls import drop_nulls, objects

# Nullable and required: everything else that is null is dropped.
_CHAT_CHOICE = frozenset({"logprobs", "finish_reason"})
_CHUNK_CHOICE = frozenset({"finish_reason"})
_COMPLETION_CHOICE = frozenset({"logprobs", "finish_reason"})
_MESSAGE = frozenset({"content", "refusal"})


def chat_reply(body: Json) -> Json:
    drop_nulls(body)
    _usage(body)
    for choice in objects(body.get("choices")):
        drop_nulls(choice, _CHAT_CHOICE)
        choice.setdefault("logprobs", None)
        _chat_logprobs(choice)
        if isinstance(message := choice.get("message"), dict):
            _chat_message(message)
    return body


def _chat_message(message: Json) -> None:
    drop_nulls(message, _MESSAGE)
    message.setdefault("content", None)
    message.setdefault("refusal", None)
    if message.get("tool_calls"):
        # vLLM writes "" beside a forced call; clients tell a call from text by the null.
        message["content"] = message["content"] or None
        for call in objects(message["tool_calls"]):
            drop_nulls(call)


def chat_chunk(data: Json) -> Json:
    drop_nulls(data)
    if "usage" in data:
        _usage(data)
    for choice in objects(data.get("choices")):
        drop_nulls(choice, _CHUNK_CHOICE)
        choice.setdefault("finish_reason", None)
        if "logprobs" in choice:
            _chat_logprobs(choice)
        if isinstance(delta := choice.get("delta"), dict):
            drop_nulls(delta)
            if "tool_calls" in delta:
                _tool_call_deltas(delta["tool_calls"])
    return data


def _tool_call_deltas(calls: Any) -> None:
    """Clients read a ``"name": null`` as a new, nameless call, and add the arguments of
    the first delta to a string: they must be one, as OpenAI sends it."""
    for call in objects(calls):
        drop_nulls(call)
        if isinstance(function := call.get("function"), dict):
            drop_nulls(function)
            if "name" in function:
                function.setdefault("arguments", "")
                call.setdefault("type", "function")


def _chat_logprobs(choice: Json) -> None:
    logprobs = choice.get("logprobs")
    if isinstance(logprobs, dict):
        logprobs.setdefault("content", None)
        logprobs.setdefault("refusal", None)
        for token in objects(logprobs["content"]):
            token.setdefault("bytes", None)
            for other in objects(token.setdefault("top_logprobs", [])):
                other.setdefault("bytes", None)


def completion(body: Json) -> Json:
    drop_nulls(body)
    _usage(body)
    for choice in objects(body.get("choices")):
        drop_nulls(choice, _COMPLETION_CHOICE)
        choice.setdefault("logprobs", None)
        choice.setdefault("finish_reason", None)
    return body


def embeddings(body: Json) -> Json:
    drop_nulls(body)
    if isinstance(usage := body.get("usage"), dict):
        drop_nulls(usage)
        # An embedding has no completion; vLLM's usage object says 0 of them.
        usage.pop("completion_tokens", None)
    return body


def _usage(body: Json) -> None:
    usage = body.get("usage")
    if isinstance(usage, dict):
        drop_nulls(usage)
        for key in ("prompt_tokens", "completion_tokens", "total_tokens"):
            usage.setdefault(key, 0)
        for key in ("prompt_tokens_details", "completion_tokens_details"):
            if isinstance(details := usage.get(key), dict):
                drop_nulls(details)
