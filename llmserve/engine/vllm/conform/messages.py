"""Anthropic's Messages: the message and the events of its stream."""

from __future__ import annotations

from llmserve.engine.protocol import Json
from llmserve.engine.vllm.conform.nulls import drop_nulls, objects

_MESSAGE = frozenset({"stop_reason", "stop_sequence"})


def message(body: Json) -> Json:
    drop_nulls(body, _MESSAGE)
    body.setdefault("stop_reason", None)
    body.setdefault("stop_sequence", None)
    identity = body.get("id")
    if isinstance(identity, str):
        body["id"] = "msg_" + identity.removeprefix("chatcmpl-").removeprefix("msg_")
    for block in objects(body.get("content")):
        _content_block(block)
    if isinstance(usage := body.get("usage"), dict):
        drop_nulls(usage)
    return body


def _content_block(block: Json) -> None:
    drop_nulls(block)
    if block.get("type") == "thinking":
        block.setdefault("signature", "")
    elif block.get("type") == "tool_use":
        block.setdefault("input", {})


def message_event(data: Json) -> Json:
    drop_nulls(data)
    if isinstance(whole := data.get("message"), dict):
        message(whole)
    if isinstance(block := data.get("content_block"), dict):
        _content_block(block)
    if isinstance(delta := data.get("delta"), dict):
        if data.get("type") == "message_delta":
            delta.setdefault("stop_reason", None)
            delta.setdefault("stop_sequence", None)
        else:
            drop_nulls(delta)
    if isinstance(usage := data.get("usage"), dict):
        drop_nulls(usage)
    return data
