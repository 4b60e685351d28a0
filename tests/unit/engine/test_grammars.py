"""Grammars that stall an engine are refused by their size, before anything compiles them."""

from __future__ import annotations

from typing import Any

import pytest

from llmserve.engine.grammars import (
    check_regex,
    check_schema,
    is_plain_regex,
    is_plain_schema,
    measure,
)
from llmserve.errors import InvalidRequest
from llmserve.settings import LimitSettings
from tests.growth import cpu_ratio

LIMITS = LimitSettings()


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(levels - 1):
        schema = {"type": "array", "items": schema}
    return schema


def properties(count: int, **bounds: int) -> dict[str, Any]:
    return {"type": "object", "properties": {f"p{i}": {} for i in range(count)}} | bounds


@pytest.mark.parametrize(
    ("text", "states"),
    [
        ("abc", 3),
        ("[a-z0-9_]", 1),
        (r"[^\]]\.x", 3),
        ("a|bc", 3),
        ("a{3}", 3),
        ("a{2,5}", 5),
        ("a{7,}", 7),
        ("(ab){100}", 200),
        ("((ab){100}){100}", 20_000),
        ("", 0),
        ("((((", 0),
    ],
)
def test_counted_repeats_are_written_out(text: str, states: int) -> None:
    assert measure(text)[0] == states


@pytest.mark.parametrize(
    "text",
    [
        # Each of these was measured to take 0.5 s to minutes, most of them at every token.
        "(((a|b|c){0,200}d{0,200}){0,200}e){0,200}",
        r"((\w){1,8}){0,500}",
        r"([a-z]{1,4} ?){0,200}",
        r"(\w?){0,500}",
        r"((\s)*){0,20000}",
        ".{0,100}.{0,100}.{0,100}",
        r"((\w+)+)+",
        r"(((\w+)+)+)+",
        "(([^a]|.{0,1000}))+",
        "a{0,99999999999999999999}",
    ],
)
def test_what_explodes_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_regex(text, "regex", LIMITS)
    assert caught.value.param == "regex"
    assert "20000" in caught.value.message


@pytest.mark.parametrize(
    "text",
    [
        r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}",
        r"(\d{1,3}\.){3}\d{1,3}",
        r"[a-z0-9._%+-]+@[a-z0-9.-]+\.[a-z]{2,}",
        r"([a-z]+, )*[a-z]+",
        r"(\w+ ){0,15}\w+",
        "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
        ".{0,5000}",
    ],
)
def test_what_people_write_passes(text: str) -> None:
    assert check_regex(text, "regex", LIMITS) > 0


def test_groups_have_a_depth() -> None:
    with pytest.raises(InvalidRequest, match="33 levels"):
        check_regex("(" * 33 + "a" + ")" * 33, "regex", LIMITS)


@pytest.mark.parametrize("text", ["(", "[", "\\", "a{2}", "(a|"])
def test_measuring_takes_linear_time_whatever_the_text(text: str) -> None:
    short, long = text * 6_000, text * 24_000
    # Four times as much to do; were it quadratic, it would take 16 times as long.
    assert cpu_ratio(lambda: measure(long), lambda: measure(short)) < 8


def test_schemas_have_a_depth_and_a_size() -> None:
    check_schema(nested(32), "schema", LIMITS)
    with pytest.raises(InvalidRequest, match="more than 32 levels") as caught:
        check_schema(nested(33), "schema", LIMITS)
    assert caught.value.param == "schema"
    check_schema(properties(900), "schema", LIMITS)
    with pytest.raises(InvalidRequest, match="more than 2000"):
        check_schema(properties(2100), "schema", LIMITS)
    with pytest.raises(InvalidRequest, match="more than 2000"):
        check_schema({"enum": list(range(2001))}, "schema", LIMITS)
    # Counting properties costs the product of both numbers.
    with pytest.raises(InvalidRequest, match="minProperties"):
        check_schema(properties(900, maxProperties=450), "schema", LIMITS)


def test_the_regexes_of_a_schema_are_bounded_together() -> None:
    def schema(count: int) -> dict[str, Any]:
        texts = [{"type": "string", "pattern": f"^.{{0,{500 + i}}}$"} for i in range(count)]
        return {"anyOf": texts}

    check_schema(schema(30), "schema", LIMITS)
    with pytest.raises(InvalidRequest, match="regular expressions come to"):
        check_schema(schema(60), "schema", LIMITS)
    named = {"type": "object", "patternProperties": {"(a{1,200}){1,200}": {}}}
    with pytest.raises(InvalidRequest, match="regular expressions come to"):
        check_schema(named, "schema", LIMITS)


def test_plain_is_what_costs_nothing() -> None:
    assert is_plain_schema(properties(100))
    assert not is_plain_schema(properties(500))
    assert not is_plain_schema(
        {"anyOf": [{"type": "string", "maxLength": 100 + i} for i in range(4)]}
    )
    assert is_plain_schema({"type": "string", "pattern": "^[a-z]{1,20}$"})
    assert not is_plain_schema({"type": "string", "pattern": "^(.{0,8})+$"})
    assert is_plain_regex(r"[a-z]+@[a-z]+\.com")
    assert not is_plain_regex("(.{0,8})+")
