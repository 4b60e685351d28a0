"""A schema that passes the check lets no wrong answer through; one that would is refused
by the keyword. The oracle is ``jsonschema``; the judge is the grammar compiler itself."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from jsonschema import Draft202012Validator, FormatChecker

from llmserve.engine.vllm.schemas import check_enforced, check_pattern
from llmserve.errors import InvalidRequest, Unsupported

INTEGER, STRING = {"type": "integer"}, {"type": "string"}
VALUES: tuple[Any, ...] = (
    *(None, True, 0, 1, 2, 5, 7, -1, 1.5, "", "a", "b", "ab", "abc", "2020-01-01"),
    *([], [1], [1, 1], [1, 2, 3], ["a"], ["a", 1], [1, "a"], [[]]),
    *({}, {"a": 1}, {"a": "x"}, {"b": 1}, {"a": 1, "b": 2}, {"a": 1, "b": 2, "c": 3}),
    *({"c": 3}, {"kind": "x"}, {"kind": "y", "a": "s"}, {"a": {"b": 1}}, {"a": None}),
)

REFUSED = [
    ({"type": "integer", "not": {"const": 1}}, "not"),
    ({"type": "object", "properties": {"a": INTEGER}, "if": {}, "then": False}, "if"),
    ({"type": "object", "properties": {"a": {}}, "dependentRequired": {"a": ["b"]}}, "dependentR"),
    ({"type": "object", "dependentSchemas": {"a": {}}}, "dependentSchemas"),
    ({"type": "array", "contains": INTEGER}, "contains"),
    ({"type": "array", "contains": INTEGER, "minContains": 2}, "contains"),
    ({"type": "array", "uniqueItems": True}, "uniqueItems"),
    ({"type": "array", "unevaluatedItems": False}, "unevaluatedItems"),
    ({"type": "integer", "multipleOf": 5}, "multipleOf"),
    ({"type": "object", "required": ["a"]}, "required 'a'"),
    ({"type": "object", "properties": {"a": {}}, "required": ["a", "b"]}, "required 'b'"),
    ({"minimum": 2}, "minimum without type"),
    ({"minLength": 2}, "minLength without type"),
    ({"minItems": 2}, "minItems without type"),
    ({"type": []}, "type []"),
    ({"type": "string", "pattern": "^a$", "minLength": 2}, "pattern together with minLength"),
    ({"type": "string", "format": "nonsense"}, "format 'nonsense'"),
    ({"type": "string", "pattern": "a^b"}, "anchor ^"),
    ({"type": "string", "pattern": "(?=a)a"}, "look-around"),
    ({"type": "string", "pattern": r"\Aa"}, r"escape \A"),
    ({"type": "integer", "const": "a"}, "const"),
    ({"type": "string", "enum": ["a", 1]}, "enum"),
    ({"type": "integer", "enum": [1, 5], "minimum": 2}, "enum together with minimum"),
    ({"anyOf": [INTEGER, STRING], "type": "string"}, "anyOf together with a type"),
    ({"type": "object", "properties": {"a": {}}, "anyOf": [{"required": ["a"]}]}, "anyOf"),
    ({"oneOf": [INTEGER, {"type": "number"}]}, "oneOf"),
    ({"allOf": [INTEGER, {"type": "integer", "minimum": 2}]}, "allOf"),
    ({"$ref": "http://example.com/x\n[01:00] forged"}, "$ref"),
    ({"$ref": "#/$defs/missing"}, "$ref"),
    ({"$ref": "#anchor", "$defs": {"x": {"$anchor": "anchor"}}}, "$ref"),
    ({"$ref": "#/anyOf/0", "anyOf": [INTEGER]}, "$ref"),
    ({"$ref": "#/$defs/x", "minimum": 2, "$defs": {"x": INTEGER}}, "$ref together with minimum"),
    ({"$dynamicRef": "#x"}, "$dynamicRef"),
    ({"type": "object", "properties": {"deep": {"items": {"not": {}}}}}, "not"),
    ({"$defs": {"unused": {"if": {}}}, "type": "integer"}, "if"),
]

PASSED = [
    {},
    {"type": "object", "properties": {"a": INTEGER}, "required": ["a"], "title": "T"},
    {"properties": {"a": {"anyOf": [INTEGER, {"type": "null"}], "default": None}}},
    {"$ref": "#/$defs/x", "$defs": {"x": INTEGER}, "description": "d"},
    {"allOf": [{"$ref": "#/$defs/x"}], "$defs": {"x": INTEGER}},
    {"type": "array", "items": {"$ref": "#/$defs/x"}, "minItems": 1, "$defs": {"x": STRING}},
    {"type": ["string", "null"], "maxLength": 5},
    {"type": "string", "enum": ["a", "b"]},
    {"oneOf": [INTEGER, STRING]},
    {
        "oneOf": [
            {"type": "object", "properties": {"kind": {"const": "x"}}, "required": ["kind"]},
            {"type": "object", "properties": {"kind": {"const": "y"}}, "required": ["kind"]},
        ]
    },
    {"type": "object", "properties": {"children": {"type": "array", "items": {"$ref": "#"}}}},
]


@pytest.mark.parametrize(("schema", "named"), REFUSED, ids=lambda value: str(value)[:50])
def test_what_would_be_ignored_is_refused_by_name(schema: Any, named: str) -> None:
    with pytest.raises(Unsupported) as caught:
        check_enforced(schema, "response_format.json_schema.schema")
    assert named in caught.value.message
    assert caught.value.param == "response_format.json_schema.schema"
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("schema", PASSED, ids=lambda value: str(value)[:50])
def test_what_is_enforced_passes(schema: Any) -> None:
    check_enforced(schema, "json_schema")


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": []},
        {"anyOf": {}},
        {"type": "object", "required": [["a"]]},
        {"type": {"a": 1}},
        {"oneOf": [{"type": "object", "required": [[]]}, {"type": "object", "required": [[]]}]},
    ],
)
def test_what_is_no_schema_is_refused_without_a_traceback(schema: Any) -> None:
    with pytest.raises(InvalidRequest):
        check_enforced(schema, "json_schema")


def test_regexes_as_a_whole_may_repeat_their_anchors() -> None:
    for good in ("^a$", "^a$|^b$", "[$^]", r"\$", r"^\d+$", "(?:a)"):
        check_pattern(good, "regex")
    for bad in ("a^b", "(^a)", "a$b", "(?i)a", r"\Aa"):
        with pytest.raises(Unsupported):
            check_pattern(bad, "regex")


class Maker:
    """Random schemas of the keywords that matter, mostly sensible, often contradictory."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311

    def schema(self, depth: int) -> Any:
        pick = self._random.choice
        kinds = {
            "string": ("minLength", "maxLength", "pattern", "format"),
            "integer": ("minimum", "maximum", "exclusiveMinimum"),
            "number": ("minimum", "maximum"),
            "object": (
                *("properties", "properties", "required", "additionalProperties"),
                *("minProperties", "maxProperties", "patternProperties", "propertyNames"),
            ),
            "array": ("items", "prefixItems", "minItems", "maxItems"),
        }
        if self._random.random() < 0.6:
            kind = pick(tuple(kinds))
            names = self._random.sample(kinds[kind], self._random.randint(0, 2))
            return {"type": pick((kind, kind, [kind, "null"]))} | self._fill(names, depth)
        every = {name for names in kinds.values() for name in names}
        every |= {"type", "enum", "const", "anyOf", "oneOf", "allOf", "$ref", "title"}
        return self._fill(self._random.sample(sorted(every), self._random.randint(1, 3)), depth)

    def _fill(self, names: list[str], depth: int) -> dict[str, Any]:
        return {name: self._value(name, depth) for name in names}

    def _inner(self, depth: int) -> Any:
        leaves = (INTEGER, STRING, {"const": "a"}, {"enum": [1, "a"]}, {"$ref": "#/$defs/x"}, True)
        return self.schema(depth - 1) if depth > 0 else self._random.choice(leaves)

    def _value(self, name: str, depth: int) -> Any:
        chance, inner = self._random, self._inner
        makers: dict[str, Any] = {
            "type": lambda: chance.choice(("string", "integer", "object", ["array", "null"])),
            "properties": lambda: {key: inner(depth) for key in chance.sample("abc", 2)},
            "required": lambda: chance.sample("abc", chance.randint(0, 2)),
            "additionalProperties": lambda: chance.choice((True, False, inner(depth))),
            "patternProperties": lambda: {chance.choice(("^a$", "b")): inner(depth)},
            "propertyNames": lambda: chance.choice(({"enum": ["a"]}, {"pattern": "^a"})),
            "items": lambda: inner(depth),
            "prefixItems": lambda: [inner(depth)],
            "pattern": lambda: chance.choice(("^a", "b$", "^a|b$", "[a-c]+")),
            "format": lambda: "date",
            "enum": lambda: chance.sample([1, "a", None, {"a": 1}], 2),
            "const": lambda: chance.choice((1, "a", None)),
            "anyOf": lambda: [inner(depth), inner(depth)],
            "oneOf": lambda: [inner(depth), inner(depth)],
            "allOf": lambda: [inner(depth)],
            "$ref": lambda: "#/$defs/x",
            "title": lambda: "t",
        }
        return makers[name]() if name in makers else chance.randint(0, 3)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_no_schema_that_passes_lets_a_wrong_answer_through() -> None:
    xgrammar = pytest.importorskip("xgrammar")
    from xgrammar.testing import _is_grammar_accept_string as accepts

    maker, passed = Maker(seed=5), 0
    for _ in range(600):
        schema = {"$defs": {"x": INTEGER}} | maker.schema(2)
        try:
            check_enforced(schema, "schema")
            grammar = xgrammar.Grammar.from_json_schema(
                json.dumps(schema), any_whitespace=False, separators=(",", ":")
            )
        except (Unsupported, RuntimeError):
            continue
        passed += 1
        oracle = Draft202012Validator(schema, format_checker=FormatChecker())
        for value in VALUES:
            if not oracle.is_valid(value):
                text = json.dumps(value, separators=(",", ":"))
                assert not accepts(grammar, text), (schema, value)
    assert passed > 150
