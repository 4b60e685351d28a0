"""The parts of the fake engine that stand alone: tokenizer, stop strings, constraints."""

from __future__ import annotations

import json
import re

import jsonschema
import pytest

from llmserve.engine.fake.constraint import constrained_text, instance
from llmserve.engine.fake.regex import matching
from llmserve.engine.fake.tokens import EOS, TextStream, decode, encode, token_text
from llmserve.errors import InvalidRequest
from llmserve.types import Constraint


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Hello there, world!",
        "  two  spaces\n\ttab",
        "naïve 東京 🙂 e\u0301",
        "a\0b",
        "12345 67",
    ],
)
def test_tokens_give_the_text_back(text: str) -> None:
    assert decode(encode(text)) == text


def test_ids_are_the_same_in_every_process() -> None:
    # Packed from the characters alone: no hash seed and no table can change them.
    assert encode("Hi you é") == [256 + 72 + (105 << 7), *encode(" you"), 32, 0xC3, 0xA9]
    assert max(encode("~~~~ zzzz 🙂")) < EOS


def test_ids_differ_where_texts_differ() -> None:
    words = ["a", "b", "ab", "ba", " a", " ab", "abc", "A", "aB", "1", "11", " 1"]

    assert len({tuple(encode(word)) for word in words}) == len(words)


def test_a_lone_surrogate_is_no_error() -> None:
    assert decode(encode("a\ud800b")) == "a?b"


def test_token_texts_are_shown() -> None:
    assert [token_text(token) for token in encode("hello é")] == ["hell", "o", " ", "�", "�"]
    assert token_text(EOS) == "<|end|>"


def stream(text: str, *stop: str) -> tuple[list[str], str | None]:
    output, deltas = TextStream(stop), []
    for token in encode(text):
        delta, stopped = output.push(token)
        deltas.append(delta)
        if stopped is not None:
            return deltas, stopped
    return [*deltas, output.flush()], None


def test_text_that_may_begin_a_stop_string_is_kept_back() -> None:
    deltas, stopped = stream("one two three", "\n\nEND")

    assert "".join(deltas) == "one two three"
    assert stopped is None
    assert all("three" not in delta for delta in deltas[:-1])


def test_the_earliest_stop_string_wins() -> None:
    deltas, stopped = stream("one two three", "three", "wo")
    assert ("".join(deltas), stopped) == ("one t", "wo")


def test_a_stop_string_may_span_tokens_and_characters_bytes() -> None:
    deltas, stopped = stream("see 東京 now", "京 n")

    assert ("".join(deltas), stopped) == ("see 東", "京 n")


SCHEMAS = [
    {},
    {"properties": {"a": {"type": "string"}}, "required": ["a"]},
    {"type": "array", "items": {"type": "integer", "minimum": 3}, "minItems": 2},
    {"type": "array", "prefixItems": [{"type": "string"}, {"const": 4}]},
    {"type": "string", "minLength": 12},
    {"type": "string", "maxLength": 2},
    {"type": "string", "pattern": "^[A-Z]{2}-\\d{3}$"},
    {"type": "string", "format": "date"},
    {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
    {"type": "integer", "minimum": 7, "multipleOf": 5},
    {"type": "integer", "maximum": -3},
    {"type": "integer", "exclusiveMinimum": 1.5, "maximum": 3},
    {"type": ["null", "string"]},
    {"enum": ["x", "y"]},
    {"anyOf": [{"enum": []}, {"type": "boolean"}]},
    {"oneOf": [{"type": "integer", "minimum": 2, "maximum": 1}, {"type": "null"}]},
    {
        "$defs": {"leaf": {"type": "object", "properties": {"v": {"type": "number"}}}},
        "type": "object",
        "properties": {"left": {"$ref": "#/$defs/leaf"}, "any": True},
        "required": ["left", "any"],
        "additionalProperties": False,
    },
    {
        "allOf": [
            {"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"]},
            {"properties": {"b": {"type": "boolean"}}, "required": ["b"]},
        ]
    },
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=json.dumps)
def test_an_instance_is_valid_under_its_schema(schema: dict[str, object]) -> None:
    text = constrained_text(Constraint(json_schema=schema), "")

    jsonschema.Draft202012Validator(schema).validate(json.loads(text))


def test_an_empty_schema_means_an_object() -> None:
    assert instance({}) == {}


ENDLESS = {"properties": {"again": {"$ref": "#"}}, "required": ["again"]}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", **ENDLESS},
        {"anyOf": [{"$ref": "#"}, {"$ref": "#"}]},
        {"type": "array", "minItems": 10**12},
        {"type": "string", "minLength": 10**12},
        {"type": "string", "minLength": "long"},
        {"type": "integer", "minimum": 2, "maximum": 1},
        {"type": "colour"},
        {"$ref": "https://example.org/schema"},
        {"$ref": "#/nowhere"},
        {"enum": []},
        {"anyOf": []},
        {"allOf": [False]},
        {"type": "object", "properties": {"a": False}, "required": ["a"]},
        {"type": "string", "pattern": "(?=x)"},
    ],
    ids=json.dumps,
)
def test_a_schema_without_a_small_instance_is_refused(schema: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest):
        instance(schema)


@pytest.mark.parametrize(
    "pattern",
    [
        "plain",
        "^anchored$",
        r"\d{4}-\d{2}-\d{2}",
        "[a-f0-9]{8}",
        "(yes|no)",
        "(?:a|b)+c?d*",
        r"\w+\s\.",
        r"[\w]x.",
        "x{2,}",
        "[^a]",
        "",
    ],
)
def test_a_simple_regex_is_matched(pattern: str) -> None:
    assert re.fullmatch(pattern, matching(pattern))


@pytest.mark.parametrize(
    "pattern", ["(", "[", "[^^]", "(?=x)y", "x{100000000}", "(a{9000}){9000}", "(" * 5000]
)
def test_other_regexes_are_refused_by_name(pattern: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        matching(pattern)

    assert caught.value.param == "regex"


def test_choices_are_picked_by_key() -> None:
    choices = Constraint(choice=("red", "green", "blue"))
    picked = [constrained_text(choices, f"key {number}") for number in range(30)]

    assert set(picked) == {"red", "green", "blue"}
    assert constrained_text(choices, "key 0") == picked[0]
