"""JSON bodies: depth, size of the work, and what is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from llmserve.errors import InvalidRequest
from llmserve.http.body import decode_object
from tests.growth import cpu_ratio


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"3",
        b'"x"',
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": "\xff"}',
        b'{"a": "\\ud800"}',
        b"{'a': 1}",
        b'{"a": 1,}',
        b'{"a": 1} x',
    ],
)
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        decode_object(body, 64)


def test_an_empty_body_is_called_so() -> None:
    with pytest.raises(InvalidRequest, match="body is empty; it must be a JSON object"):
        decode_object(b"", 64)


@pytest.mark.parametrize(
    ("body", "offset"),
    [(b'{"a": "x\xff"}', 8), (b'{"\xffa": 1}', 2), ('{"ü": "é'.encode() + b'\xe9"}', 10)],
)
def test_a_byte_that_is_no_utf_8_is_counted_from_the_beginning(body: bytes, offset: int) -> None:
    with pytest.raises(InvalidRequest, match=f"the byte at {offset} is not UTF-8"):
        decode_object(body, 64)


def test_depth_is_bounded_exactly() -> None:
    assert decode_object(b'{"a":[[1]]}', 3) == {"a": [[1]]}
    with pytest.raises(InvalidRequest, match="limit of 3 levels"):
        decode_object(b'{"a":[[[1]]]}', 3)


def test_brackets_in_strings_are_no_depth() -> None:
    text = '[{"' * 1000
    assert decode_object(b'{"a": "' + text.replace('"', '\\"').encode() + b'"}', 2)["a"] == text
    many = b'{"a": [' + b",".join([b"{}"] * 1000) + b"]}"
    assert len(decode_object(many, 3)["a"]) == 1000


HOSTILE: dict[str, Callable[[int], bytes]] = {
    "arrays": lambda size: b"[" * size,
    "objects": lambda size: b'{"a":' * (size // 5),
    "escapes": lambda size: b"[[" * 40 + b'"' + b'\\"' * (size // 2),
    "half strings": lambda size: b'[{"' * (size // 3),
    "quotes": lambda size: b'"' * size + b"[" * 100,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_bodies_cost_linear_time(kind: str) -> None:
    def refused(body: bytes) -> None:
        with pytest.raises(InvalidRequest):
            decode_object(body, 64)

    short, long = HOSTILE[kind](500_000), HOSTILE[kind](2_000_000)
    # Four times as much to do; were it quadratic, it would take 16 times as long.
    assert cpu_ratio(lambda: refused(long), lambda: refused(short)) < 8
