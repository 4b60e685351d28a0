"""A key that stands twice: refused wherever it hides, and never seen where it is not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmserve.errors import InvalidRequest
from llmserve.http.body import decode_object


@pytest.mark.parametrize(
    "body",
    [
        rb'{"a":1,"a":1}',
        rb'{"a" : 1, "a"' + b"\n\t:2}",
        rb'{"x":[{"b":1,"b":1}]}',
        rb'{"\u0061":1,"a":2}',
        rb'{"a\\":1,"b":1,"b":2}',
        rb'{"a\"":1,"a\"":2}',
        rb'{"a":"\":","b":1,"b":2}',
        rb'{"":1,"":2}',
        rb'{"a":{"x":{}},"a":{"b":1,"c":2}}',
        rb'{"a":[{}],"a":[{"b":1}]}',
    ],
)
def test_a_key_that_stands_twice_is_refused_by_name(body: bytes) -> None:
    with pytest.raises(InvalidRequest, match="stands twice in one object") as caught:
        decode_object(body, 64)
    assert caught.value.param is not None


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"a": '":', "b": '{"a":1,"a":2}'},
        {"a": "\\", "b\\": '\\":'},
        {'a"': 1, "a": [{"a": 1}, {"a": 2}], "b": {"a": {"a": {}}}},
        {"a": "{{{{", "b": ["{", {"c": "}"}]},
    ],
)
def test_what_looks_like_a_key_is_none(value: dict[str, Any]) -> None:
    assert decode_object(json.dumps(value).encode(), 64) == value


KEYS = st.sampled_from(["a", "b", 'c"', "d\\", "e:", '":', "{"])
VALUES = st.recursive(
    st.sampled_from(["1", "null", r'"\":"', r'"a\\"', '"{"', '": "']),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: f"[{','.join(items)}]"),
        st.lists(st.tuples(KEYS, st.sampled_from([":", " : "]), inner), max_size=3).map(
            lambda pairs: "{%s}" % ",".join(json.dumps(k) + c + v for k, c, v in pairs)  # noqa: UP031
        ),
    ),
    max_leaves=12,
)


def has_twice(text: str) -> bool:
    found = []

    def look(pairs: list[tuple[str, Any]]) -> None:
        found.append(len({key for key, _ in pairs}) < len(pairs))

    json.loads(text, object_pairs_hook=look)
    return any(found)


@settings(max_examples=400, derandomize=True, deadline=None, database=None)
@given(VALUES)
def test_as_a_slow_decoder_says(value: str) -> None:
    text = '{"x": %s}' % value  # noqa: UP031
    if has_twice(text):
        with pytest.raises(InvalidRequest):
            decode_object(text.encode(), 64)
    else:
        assert decode_object(text.encode(), 64) == json.loads(text)
