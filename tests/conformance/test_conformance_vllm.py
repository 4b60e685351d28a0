"""Replies that vLLM 0.32 gave to this project (``fixtures/``, one file for each operation;
a list is a stream of ``[event name, data]``) conform once ``conform`` has had them, and
most of them did not before."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from llmserve.engine.protocol import Context
from llmserve.engine.vllm import conform
from llmserve.types import Operation
from tests.conformance.validator import KINDS, assert_openai, validate

FIXTURES = Path(__file__).parent / "fixtures"
CONTEXT = Context(request_id="r1", model="served-name")
# What a reply and an event of each operation must be.
KIND = {
    Operation.CHAT: ("chat", "chat_chunk"),
    Operation.COMPLETION: ("completion", "completion_chunk"),
    Operation.RESPONSES: ("response", "response_event"),
    Operation.MESSAGES: ("anthropic_message", "anthropic_event"),
    Operation.EMBEDDINGS: ("embeddings", ""),
}


def golden() -> list[Any]:
    return [
        pytest.param(Operation(path.stem), said, id=f"{path.stem}-{name}")
        for path in sorted(FIXTURES.glob("*.json"))
        for name, said in json.loads(path.read_text("utf-8")).items()
    ]


@pytest.mark.parametrize(("operation", "said"), golden())
def test_what_vllm_said_conforms_afterwards(operation: Operation, said: Any) -> None:
    whole, event = KIND[operation]
    if isinstance(said, dict):
        reply = conform.reply(operation, said, CONTEXT)
        assert reply["model"] == CONTEXT.model
        assert_openai(whole, reply)
        return
    stream = conform.Stream(operation, CONTEXT)
    for name, data in said:
        for sent in stream.feed(name, data):
            assert_openai(event, sent.data)
            assert sent.event == (sent.data["type"] if name else None)


@pytest.mark.parametrize(("operation", "said"), golden())
def test_conforming_twice_changes_nothing(operation: Operation, said: Any) -> None:
    if isinstance(said, dict):
        once = conform.reply(operation, said, CONTEXT)
        assert conform.reply(operation, copy.deepcopy(once), CONTEXT) == once


def test_most_replies_of_vllm_do_not_conform() -> None:
    """If this fails, vLLM has improved: look at what ``conform`` still has to do."""
    bad = [
        case.id
        for case in golden()
        for operation, said in [case.values]
        if isinstance(said, dict) and validate(KIND[operation][0], said)
    ]
    assert len(bad) > 20


def test_every_schema_refuses_an_empty_object_and_a_list() -> None:
    assert len(KINDS) == 13
    for kind in KINDS:
        assert validate(kind, {})
        assert validate(kind, [])


@pytest.mark.parametrize("kind", ["error", "anthropic_error", "model", "models"])
def test_our_own_objects(kind: str) -> None:
    error = {"message": "m", "type": "t", "param": None, "code": None}
    model = {"id": "m", "object": "model", "created": 1, "owned_by": "llmserve"}
    good: dict[str, Any] = {
        "error": {"error": error},
        "anthropic_error": {"type": "error", "error": {"type": "api_error", "message": "m"}},
        "model": model,
        "models": {"object": "list", "data": [model]},
    }
    assert_openai(kind, good[kind])
    with pytest.raises(AssertionError, match=f"not a valid {kind}"):
        assert_openai(kind, {"error": error | {"code": 400}})
