"""Reading numbers and texts one after another, never past the end."""

from __future__ import annotations

import struct

from llmserve.modelfile.errors import Malformed, Refused
from llmserve.modelfile.source import HEADER_BUDGET, Buffer, Source


class Short(Exception):
    """The header goes on behind the buffer: ask for ``need`` bytes and start again."""

    def __init__(self, need: int) -> None:
        super().__init__(need)
        self.need = need


MAX_TEXT = 8_000_000
"""Bytes of all names and texts together. In memory they can take four times as much."""


class Cursor:
    """A position in the beginning of a file. ``limit`` is where a header must end at the
    latest: at the end of the file or of the budget."""

    __slots__ = (
        "_u32",
        "_u64",
        "buffer",
        "length",
        "limit",
        "name",
        "order",
        "pos",
        "size",
        "texts",
    )

    def __init__(self, source: Source, buffer: Buffer, order: str = "<") -> None:
        self.name = source.name
        self.size = source.size
        self.limit = min(source.size, HEADER_BUDGET)
        self.buffer = buffer
        self.length = len(buffer)
        self.pos = 0
        self.texts = MAX_TEXT
        self.set_order(order)

    def set_order(self, order: str) -> None:
        """``<`` or ``>``."""
        self.order = order
        self._u32 = struct.Struct(f"{order}I").unpack_from
        self._u64 = struct.Struct(f"{order}Q").unpack_from

    def u32(self, what: str) -> int:
        at = self.take(4, what)
        return int(self._u32(self.buffer, at)[0])

    def u64(self, what: str) -> int:
        at = self.take(8, what)
        return int(self._u64(self.buffer, at)[0])

    def unpack(self, code: str, what: str) -> int | float:
        """One number of a ``struct`` type."""
        at = self.take(struct.calcsize(f"={code}"), what)
        value: int | float = struct.unpack_from(f"{self.order}{code}", self.buffer, at)[0]
        return value

    def count(self, what: str, smallest: int, most: int) -> int:
        """A number of things that follow, each of ``smallest`` bytes at least."""
        at = self.pos
        count = self.u64(what)
        allowed = min(most, (self.limit - self.pos) // smallest)
        if count > allowed:
            raise self.bad(at, what, f"at most {allowed}", str(count))
        return count

    def raw(self, what: str, most: int) -> bytes:
        """Bytes behind their length."""
        at = self.pos
        length = self.u64(f"length of the {what}")
        most = min(most, self.texts)
        if length > most:
            raise self.bad(at, f"length of the {what}", f"at most {most} bytes", str(length))
        start = self.take(length, what)
        self.texts -= length
        return self.buffer[start : start + length]

    def text(self, what: str, most: int) -> str:
        """The same, as UTF-8."""
        at = self.pos
        try:
            return self.raw(what, most).decode()
        except UnicodeDecodeError as error:
            raise self.bad(at + 8 + error.start, what, "UTF-8 text") from error

    def take(self, size: int, what: str) -> int:
        """Step over ``size`` bytes; where they begin."""
        at = self.pos
        end = at + size
        if end > self.length:
            raise self.past_end(end, what)
        self.pos = end
        return at

    def past_end(self, end: int, what: str) -> Exception:
        """``end`` lies behind what is at hand: behind the file as well?"""
        if end <= self.limit:
            return Short(end)
        if end <= self.size:
            return Refused(
                self.name,
                f"its header is longer than {HEADER_BUDGET:,} bytes (byte {self.pos}, {what})",
            )
        return self.bad(
            self.pos, what, f"{end - self.pos} bytes", f"{self.size - self.pos} until the end"
        )

    def bad(self, at: int, what: str, expected: str, found: str = "") -> Malformed:
        return Malformed(self.name, f"byte {at} ({what})", expected, found)
