"""The comparison of a conversion with its file sees what it is there to see."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmserve.provision.facts import GgufFacts, read_facts
from llmserve.provision.rope import Impossible
from llmserve.provision.verify import verify_tokenizer, verify_weights


@pytest.fixture(scope="module")
def facts(tiny_gguf: Path) -> GgufFacts:
    return read_facts(tiny_gguf)


def changed(facts: GgufFacts, **keys: Any) -> GgufFacts:
    new = {f"tokenizer.ggml.{name}": value for name, value in keys.items()}
    return replace(facts, metadata={**facts.metadata, **new}, notes=[])


def test_true_conversion_agrees(converted: Path, facts: GgufFacts) -> None:
    verify_tokenizer(converted, facts)
    assert facts.notes == []


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"add_bos_token": False}, "other tokens around a text"),
        ({"add_eos_token": True}, "other tokens around a text"),
        ({"bos_token_id": 2}, "bos = 0, the file 2"),
        ({"padding_token_id": 2}, "pad = 4, the file 2"),
    ],
)
def test_lost_facts_are_seen(
    converted: Path, facts: GgufFacts, keys: dict[str, Any], reason: str
) -> None:
    with pytest.raises(Impossible, match=reason):
        verify_tokenizer(converted, changed(facts, **keys))


def test_smaller_vocabulary_is_seen(converted: Path, facts: GgufFacts) -> None:
    with pytest.raises(Impossible, match="264 tokens, the file 260"):
        verify_tokenizer(converted, changed(facts, tokens=facts.tokens[:260]))


def test_special_token_in_pieces_is_seen(converted: Path, facts: GgufFacts) -> None:
    tokens = [*facts.tokens]
    tokens[3] = "<|other end of turn|>"
    with pytest.raises(Impossible, match="fall to pieces"):
        verify_tokenizer(converted, changed(facts, tokens=tokens))


def test_special_token_that_nobody_uses_is_noted(converted: Path, facts: GgufFacts) -> None:
    tokens = [*facts.tokens]
    tokens[263] = "<unused>"
    other = changed(facts, tokens=tokens)
    verify_tokenizer(converted, other)
    assert "'<unused>'" in other.notes[0]


def model(rows: int, weights: int) -> Any:
    embedding = SimpleNamespace(weight=SimpleNamespace(shape=(rows, 32)))
    parameter = SimpleNamespace(numel=lambda: weights)
    return SimpleNamespace(
        get_input_embeddings=lambda: embedding, parameters=lambda: iter([parameter])
    )


def test_lost_weights_are_seen(facts: GgufFacts) -> None:
    verify_weights(model(264, facts.weights), facts)
    with pytest.raises(Impossible, match="cannot be carried over"):
        verify_weights(model(264, facts.weights - 32), facts)
    with pytest.raises(Impossible, match="263 rows"):
        verify_weights(model(263, facts.weights), facts)
