"""The header of one SafeTensors file.

Layout: u64 (little-endian) length of the header; the header, a JSON object beginning
with ``{`` and perhaps padded with spaces; then the data. Each member is a tensor
(``dtype``, ``shape``, ``data_offsets`` from the beginning of the data) but for
``__metadata__``, an object of texts.

The object is walked member by member with regular expressions over the bytes, for they
need no copy of the whole, tell the place of an error, and let other threads run.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from llmserve.modelfile.errors import Malformed, Refused
from llmserve.modelfile.source import HEADER_BUDGET, Buffer, Source
from llmserve.modelfile.types import Problem, ProblemKind, TensorInfo

MAX_TENSORS = 50_000
MAX_METADATA = 10_000
MAX_DIMENSIONS = 8
MAX_NAME = 65_536
MAX_TEXT = 8_000_000
"""Bytes of all names and metadata together."""

MAX_ELEMENTS = 2**63 - 1

BITS = {"BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64}
BITS |= {"I64": 64, "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64, "F4": 4}
BITS |= {"F6_E2M3": 6, "F6_E3M2": 6, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8}
BITS |= {"F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8}
"""Bits per element of each dtype."""

_BITS_OF = {dtype.encode(): bits for dtype, bits in BITS.items()}

_SPACE = rb"[ \t\n\r]*+"
_TEXT = rb'"((?:[^"\\\x00-\x1f]++|\\.)*+)"'
_NUMBER = rb"(0|[1-9][0-9]{0,18})(?![0-9])"
_SHAPE = rb"\[([0-9,\x20\t\n\r]*+)\]"


def _compile(pattern: bytes) -> re.Pattern[bytes]:
    """A space in the pattern stands for white space."""
    return re.compile(pattern.replace(b" ", _SPACE), re.DOTALL)


_KEY = _compile(b" " + _TEXT + b" : ")
_MORE = _compile(b" ([,}])")
_OPEN = _compile(rb" \{")
_CLOSE = _compile(b" }")
_VALUE = _compile(_TEXT)
# What every writer makes of a tensor; other orders of the three members take longer.
_ENTRY = _compile(
    rb' %s : \{ "dtype" : "([A-Za-z0-9_]{1,20})" , "shape" : %s , "data_offsets" : \[ %s , %s \]'
    rb" \} ([,}])" % (_TEXT, _SHAPE, _NUMBER, _NUMBER)
)
_MEMBERS = {
    "dtype": _compile(rb'"[A-Za-z0-9_]{1,20}"'),
    "shape": _compile(rb"\[ (?:%s(?: , %s){0,8})? \]" % (_NUMBER, _NUMBER)),
    "data_offsets": _compile(rb"\[ %s , %s \]" % (_NUMBER, _NUMBER)),
}
_WINDOW = MAX_NAME + 4096
"""No name and no tensor is longer: how far one match may look."""


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    """``data_start`` is the first byte of the data."""

    metadata: dict[str, str]
    tensors: list[TensorInfo]
    data_start: int
    problems: list[Problem]


def read_safetensors(source: Source) -> SafetensorsHeader:
    """Raises ``Malformed``, ``Refused`` or ``Unreadable``. The source stays open."""
    length = header_length(source)
    return _Walk(source, source.head(8 + length), 8 + length).header()


def header_length(source: Source) -> int:
    """Checked against the file's size and the budget."""
    if source.size < 10:
        raise Malformed(
            source.name, "byte 0 (length of the header)", "at least 10 bytes", str(source.size)
        )
    length = int.from_bytes(source.read(0, 8), "little")
    where = "byte 0 (length of the header)"
    if length > source.size - 8:
        allowed = f"at most {source.size - 8} (the rest of the file)"
        raise Malformed(source.name, where, allowed, str(length))
    if length > HEADER_BUDGET - 8:
        raise Refused(
            source.name, f"its header of {length:,} bytes is longer than {HEADER_BUDGET:,}"
        )
    if length < 2:
        raise Malformed(source.name, where, "at least 2", str(length))
    return length


class _Walk:
    """One pass over the header."""

    def __init__(self, source: Source, buffer: Buffer, end: int) -> None:
        if len(buffer) < end:
            raise Malformed(source.name, f"byte {len(buffer)}", f"{end} bytes of header", "the end")
        self.name, self.buffer, self.start = source.name, buffer, end
        self.pos = 8
        self.texts = MAX_TEXT
        self.seen: set[str] = set()
        self.metadata: dict[str, str] = {}
        self.tensors: list[TensorInfo] = []
        self.problems: list[Problem] = []

    def header(self) -> SafetensorsHeader:
        if self.buffer[8:9] != b"{":
            raise self.bad("'{'")
        self.pos = 9
        done = self._skip(_CLOSE)
        while not done:
            done = self._plain_entries() or self._unusual_entry()
        # What is behind the object is looked at in pieces: it can be long.
        for at in range(self.pos, self.start, 1 << 20):
            if self.buffer[at : min(at + (1 << 20), self.start)].strip(b" \t\n\r\0"):
                raise self.bad("nothing but spaces behind the object", at=at)
        return SafetensorsHeader(self.metadata, self.tensors, self.start, self.problems)

    def _plain_entries(self) -> bool:
        """Step over tensors as every writer writes them, as many as follow each other.
        Whether the object ends there. One loop, because models have 100,000 in all."""
        buffer, last, pos = self.buffer, self.start, self.pos
        shapes: dict[bytes, tuple[tuple[int, ...], int]] = {}
        while found := _ENTRY.match(buffer, pos, pos + _WINDOW if pos + _WINDOW < last else last):
            raw, dtype, shape, begin, end, more = found.groups()
            if shape not in shapes:
                shapes[shape] = self._shape(shape, pos)
            sizes, elements = shapes[shape]
            name = self._new_name(raw, pos)
            start, stop = int(begin), int(end)
            if elements * _BITS_OF.get(dtype, -1) != (stop - start) * 8 or start > stop:
                self._check(name, dtype.decode(), sizes, (start, stop), pos)
            info = TensorInfo(name, sizes, dtype.decode(), stop - start, last + start, self.name)
            self.tensors.append(info)
            self.pos = pos = found.end()
            if more == b"}":
                return True
        return False

    def _shape(self, text: bytes, at: int) -> tuple[tuple[int, ...], int]:
        """The dimensions, and their product."""
        try:
            sizes = tuple(map(int, text.split(b","))) if text.strip() else ()
        except ValueError:
            raise self.bad("whole numbers (shape)", ascii(text[:100]), at) from None
        elements = math.prod(sizes)
        if len(sizes) > MAX_DIMENSIONS or elements > MAX_ELEMENTS:
            expected = f"at most {MAX_DIMENSIONS} dimensions and fewer than 2^63 elements"
            raise self.bad(expected, str(sizes)[:100], at)
        return sizes, elements

    def _check(
        self, name: str, dtype: str, sizes: tuple[int, ...], offsets: tuple[int, int], at: int
    ) -> None:
        """Do dtype and shape fit the room that the tensor has?"""
        begin, end = offsets
        if not begin <= end <= MAX_ELEMENTS:
            raise self.bad("data_offsets that do not decrease", f"[{begin}, {end}]", at)
        bits = BITS.get(dtype)
        if bits is not None and (math.prod(sizes) * bits + 7) // 8 == end - begin:
            return
        kind = ProblemKind.SIZE
        detail = f"Its data have {end - begin} bytes, which does not fit {list(sizes)} of {dtype}."
        if bits is None:
            # Newer than this reader, perhaps: no damage.
            kind, detail = ProblemKind.METADATA, f"The dtype {dtype} is not known."
        self.problems.append(Problem(kind, f"{self.name}: {name[:100]!a}", detail))

    def _unusual_entry(self) -> bool:
        """A member of another kind. Whether the object ends there."""
        found = self._match(_KEY, f"a name of at most {MAX_NAME} bytes and a colon")
        name = self._new_name(found.group(1), found.start(1))
        if name == "__metadata__":
            self._read_metadata()
        else:
            self._read_tensor(name)
        return self._match(_MORE, "',' or '}'").group(1) == b"}"

    def _new_name(self, raw: bytes, at: int) -> str:
        name = self._decode(raw, at, MAX_NAME)
        if name in self.seen:
            raise self.bad("a name that did not occur before", ascii(name[:100]), at)
        self.seen.add(name)
        if len(self.seen) > MAX_TENSORS:
            raise self.bad(f"at most {MAX_TENSORS} tensors", "more", at)
        return name

    def _read_metadata(self) -> None:
        for key in self._members("metadata", MAX_METADATA):
            if key in self.metadata:
                raise self.bad("a key that did not occur before", ascii(key[:100]))
            found = self._match(_VALUE, f"a text as value of {key[:100]!a}", MAX_TEXT)
            self.metadata[key] = self._decode(found.group(1), found.start(1), MAX_TEXT)

    def _read_tensor(self, name: str) -> None:
        """A tensor whose members stand in another order, or something malformed."""
        at, members = self.pos, {}
        for key in self._members(f"members of tensor {name[:100]!a}", 3):
            expected = _MEMBERS.get(key)
            if expected is None or key in members:
                raise self.bad("each of dtype, shape and data_offsets once", ascii(key[:100]))
            found = self._match(expected, f"{key} of tensor {name[:100]!a}")
            members[key] = json.loads(found.group())
        if len(members) != 3:
            raise self.bad("dtype, shape and data_offsets", ", ".join(members) or "nothing", at)
        sizes, _ = self._shape(b",".join(b"%d" % each for each in members["shape"]), at)
        begin, end = members["data_offsets"]
        self._check(name, members["dtype"], sizes, (begin, end), at)
        info = TensorInfo(name, sizes, members["dtype"], end - begin, self.start + begin, self.name)
        self.tensors.append(info)

    def _members(self, what: str, most: int) -> Iterator[str]:
        """The keys of an inner object; who asks steps over the value."""
        self._match(_OPEN, f"an object of {what} ('{{')")
        if self._skip(_CLOSE):
            return
        for _ in range(most):
            found = self._match(_KEY, f"a name and a colon (of {what})")
            yield self._decode(found.group(1), found.start(1), MAX_NAME)
            if self._match(_MORE, "',' or '}'").group(1) == b"}":
                return
        raise self.bad(f"at most {most} {what}", "more")

    def _skip(self, pattern: re.Pattern[bytes]) -> bool:
        found = pattern.match(self.buffer, self.pos, min(self.start, self.pos + _WINDOW))
        self.pos = found.end() if found else self.pos
        return found is not None

    def _match(
        self, pattern: re.Pattern[bytes], expected: str, window: int = _WINDOW
    ) -> re.Match[bytes]:
        found = pattern.match(self.buffer, self.pos, min(self.start, self.pos + window))
        if found is None:
            raise self.bad(expected)
        self.pos = found.end()
        return found

    def _decode(self, raw: bytes, at: int, most: int) -> str:
        most = min(most, self.texts)
        if len(raw) > most:
            raise self.bad(f"a text of at most {most} bytes", str(len(raw)), at)
        self.texts -= len(raw)
        try:
            if b"\\" not in raw:
                return raw.decode()
            text = str(json.loads(b'"%s"' % raw))
            # A lone surrogate can be written in JSON, and cannot be sent on.
            text.encode()
        except (ValueError, UnicodeError) as error:
            raise self.bad("UTF-8 text", at=at) from error
        return text

    def bad(self, expected: str, found: str = "", at: int | None = None) -> Malformed:
        pos = self.pos if at is None else at
        shown = found or ascii(bytes(self.buffer[pos : min(pos + 20, self.start)]))[1:]
        return Malformed(self.name, f"byte {pos} (header)", expected, shown)
