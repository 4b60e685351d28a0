"""Stepping over arrays of strings without looking at every one in Python.

A vocabulary is a few hundred thousand strings, each behind its length in eight bytes. A
loop over them takes most of the time of reading a header. The regular expression engine
does the same in half the time: one alternative for each short length, 256 strings in one
match. A match is 10 µs long, so other threads get their turn in between.
"""

from __future__ import annotations

import re
import struct
from functools import cache

from llmserve.modelfile.cursor import Cursor

STRIDE = 256
_SHORT = 80
"""Strings of so many bytes and more are stepped over one by one."""


def skip_strings(cursor: Cursor, count: int, what: str) -> tuple[int, ...]:
    """Step over ``count`` strings; where each ``STRIDE``-th begins."""
    buffer, match = cursor.buffer, _pattern(cursor.order, STRIDE).match
    marks = []
    while count > 0:
        marks.append(cursor.pos)
        if count < STRIDE:
            _skip_each(cursor, count, what)
        elif found := match(buffer, cursor.pos):
            cursor.pos = found.end()
        else:
            _skip_mixed(cursor, what)
        count -= STRIDE
    return tuple(marks)


def _skip_mixed(cursor: Cursor, what: str) -> None:
    """A stride with long strings in it: by sixteen, so that one of them costs little."""
    match = _pattern(cursor.order, 16).match
    for _ in range(STRIDE // 16):
        if found := match(cursor.buffer, cursor.pos):
            cursor.pos = found.end()
        else:
            _skip_each(cursor, 16, what)


def _skip_each(cursor: Cursor, count: int, what: str) -> None:
    buffer, unpack = cursor.buffer, struct.Struct(f"{cursor.order}Q").unpack_from
    pos, last = cursor.pos, cursor.length - 8
    for _ in range(count):
        if pos > last:
            cursor.pos = min(pos, cursor.length)
            raise cursor.past_end(pos + 8, what)
        pos += 8 + unpack(buffer, pos)[0]
    if pos > cursor.length:
        cursor.pos = cursor.length
        raise cursor.past_end(pos, what)
    cursor.pos = pos


@cache
def _pattern(order: str, count: int) -> re.Pattern[bytes]:
    """Possessive: it never tries a second way, and keeps nothing for that."""
    zeros = rb"\0" * 7
    strings = []
    for length in range(_SHORT):
        first = re.escape(bytes([length]))
        size = first + zeros if order == "<" else zeros + first
        strings.append(size + (b".{%d}+" % length if length else b""))
    return re.compile(b"(?:%s){%d}+" % (b"|".join(strings), count), re.DOTALL)
