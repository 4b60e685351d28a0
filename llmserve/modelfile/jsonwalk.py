"""Finding one's way in a JSON file that is too long to parse at once.

``json`` holds Python's lock until it is done, and makes objects of everything. Here the
long parts are stepped over in pieces, and only short ones are parsed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from llmserve.modelfile.errors import Malformed
from llmserve.modelfile.source import Buffer

MAX_BRACKETS = 50_000
MAX_MEMBERS = 20_000
MAX_KEY = 65_536
MAX_DEPTH = 16
PARSED = 262_144
"""Longer values are not parsed, but objects are entered."""

_WINDOW = 1 << 20
_SPACE = rb"[ \t\n\r]*+"
_TEXT = rb'"((?:[^"\\\x00-\x1f]++|\\.)*+)"'
_OPEN = re.compile(_SPACE + rb"\{" + _SPACE + rb"(\})?")
_KEY = re.compile(_SPACE + _TEXT + _SPACE + b":" + _SPACE, re.DOTALL)
_MORE = re.compile(_SPACE + b"([,}])")
_PLAIN = re.compile(rb'[^\[\]{},"\s]++')
_STRING = re.compile(_TEXT, re.DOTALL)
_PAIR = re.compile(_KEY.pattern + _TEXT + _SPACE + b"([,}])", re.DOTALL)
# 500 texts and numbers at once, and the bracket behind them if there is one.
_PIECE = re.compile(
    rb'(?:[^\[\]{}"]{1,4096}+|"(?:[^"\\\x00-\x1f]++|\\.)*+"){0,500}+(?:([\[{])|([\]}]))?',
    re.DOTALL,
)


def members(name: str, buffer: Buffer, start: int, end: int) -> Iterator[tuple[str, int, int]]:
    """The members of the object at ``start``: key, and where its value begins and ends.

    Values are stepped over, not checked. Raises ``Malformed``.
    """
    found = _OPEN.match(buffer, start, min(end, start + _WINDOW))
    if found is None:
        raise _bad(name, start, "an object ('{')")
    if found.group(1):
        return
    pos, brackets = found.end(), MAX_BRACKETS
    for _ in range(MAX_MEMBERS):
        found = _KEY.match(buffer, pos, min(end, pos + MAX_KEY + 4096))
        if found is None:
            raise _bad(name, pos, f"a name of at most {MAX_KEY} bytes and a colon")
        key = decode(name, found.group(1), found.start(1))
        stop, brackets = _value_end(name, buffer, found.end(), end, brackets)
        yield key, found.end(), stop
        found = _MORE.match(buffer, stop, min(end, stop + _WINDOW))
        if found is None:
            raise _bad(name, stop, "',' or '}'")
        if found.group(1) == b"}":
            return
        pos = found.end()
    raise _bad(name, pos, f"at most {MAX_MEMBERS:,} members")


def find_member(name: str, buffer: Buffer, end: int, wanted: str) -> int | None:
    """Where the value of one member begins. What stands before it may not be long."""
    found = _OPEN.match(buffer, 0, min(end, MAX_KEY))
    if found is None:
        raise _bad(name, 0, "an object ('{')")
    pos = found.end()
    while key := _KEY.match(buffer, pos, min(end, pos + MAX_KEY)):
        if decode(name, key.group(1), key.start(1)) == wanted:
            return key.end()
        pos, _ = _value_end(name, buffer, key.end(), min(end, MAX_KEY), MAX_BRACKETS)
        if not (more := _MORE.match(buffer, pos, end)) or more.group(1) == b"}":
            break
        pos = more.end()
    return None


def pairs(name: str, buffer: Buffer, start: int, end: int) -> Iterator[tuple[bytes, bytes, int]]:
    """The same of an object of texts: both as they stand there, and where."""
    found = _OPEN.match(buffer, start, min(end, start + _WINDOW))
    if found is None:
        raise _bad(name, start, "an object ('{')")
    if found.group(1):
        return
    pos, more = found.end(), b","
    while more == b",":
        found = _PAIR.match(buffer, pos, min(end, pos + 2 * MAX_KEY))
        if found is None:
            raise _bad(name, pos, "a name, a colon and a text")
        key, value, more = found.groups()
        yield key, value, pos
        pos = found.end()


def parse(name: str, text: bytes, start: int, end: int, depth: int = 0) -> dict[str, Any]:
    """The object at ``start``, without what is longer than ``PARSED`` and no object."""
    if depth > MAX_DEPTH:
        raise _bad(name, start, f"at most {MAX_DEPTH} long objects in each other")
    found: dict[str, Any] = {}
    for key, begin, stop in members(name, text, start, end):
        if stop - begin <= PARSED:
            try:
                found[key] = json.loads(text[begin:stop].decode())
            except (ValueError, RecursionError) as error:
                raise _bad(name, begin, f"JSON (value of {key[:100]!a})") from error
        elif text[begin : begin + 1] == b"{":
            found[key] = parse(name, text, begin, stop, depth + 1)
        else:
            found[key] = f"({stop - begin:,} bytes, not shown)"
    return found


def decode(name: str, raw: bytes, at: int) -> str:
    """What stands between two quotation marks."""
    if len(raw) > MAX_KEY:
        raise _bad(name, at, f"a text of at most {MAX_KEY} bytes")
    try:
        text = str(json.loads(b'"%s"' % raw)) if b"\\" in raw else raw.decode()
        text.encode()
    except (ValueError, UnicodeError) as error:
        raise _bad(name, at, "UTF-8 text") from error
    return text


def _value_end(name: str, buffer: Buffer, pos: int, end: int, brackets: int) -> tuple[int, int]:
    """Where the value ends, and how many brackets are left."""
    window = min(end, pos + _WINDOW)
    found = _STRING.match(buffer, pos, window) or _PLAIN.match(buffer, pos, window)
    if found:
        return found.end(), brackets
    depth = 0
    while brackets > 0:
        found = _PIECE.match(buffer, pos, end)
        if found is None or found.end() == pos or (depth == 0 and found.start(1) != pos):
            raise _bad(name, pos, "a value")
        pos = found.end()
        if found.group(1):
            depth += 1
        elif found.group(2):
            depth -= 1
            if depth == 0:
                return pos, brackets
        brackets -= found.lastindex is not None
    raise _bad(name, pos, f"at most {MAX_BRACKETS:,} lists and objects")


def _bad(name: str, at: int, expected: str) -> Malformed:
    return Malformed(name, f"byte {at}", expected)
