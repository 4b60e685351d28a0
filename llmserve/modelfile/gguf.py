"""The header of one GGUF file: metadata and tensor table.

Layout (version 3; version 2 is the same): ``GGUF``, u32 version, u64 tensors, u64 keys;
for each key a text, u32 type and value; for each tensor a name, u32 number of
dimensions, u64 each (innermost first), u32 type, u64 offset in the data, which begin at
the next multiple of ``general.alignment`` (32). Numbers are little-endian; in a
big-endian file all of them are the other way round.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field

from llmserve.modelfile.cursor import MAX_TEXT, Cursor, Short
from llmserve.modelfile.errors import Malformed
from llmserve.modelfile.ggml import TYPES
from llmserve.modelfile.source import Source
from llmserve.modelfile.strings import STRIDE, skip_strings
from llmserve.modelfile.types import Problem, ProblemKind, TensorInfo

MAX_KEYS = 10_000
MAX_TENSORS = 32_768
MAX_STRINGS = 1_200_000
"""In all arrays of one file; the largest vocabularies with their merges have 800,000."""

MAX_KEY = 65_535
MAX_NAME = 65_536
MAX_DIMENSIONS = 4
MAX_ELEMENTS = 2**63 - 1
_FIRST_READ = 1 << 20

_BOOL, _STRING, _ARRAY = 7, 8, 9
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B"}
_NUMBERS |= {10: "Q", 11: "q", 12: "d"}
_NAMES = {0: "u8", 1: "i8", 2: "u16", 3: "i16", 4: "u32", 5: "i32", 6: "f32", 7: "bool"}
_NAMES |= {8: "str", 10: "u64", 11: "i64", 12: "f64"}


@dataclass(frozen=True, slots=True)
class GgufArray:
    """An array that was stepped over: ``start`` is the offset of its first item, ``marks``
    that of every ``STRIDE``-th string."""

    type: str
    code: str
    length: int
    start: int
    marks: tuple[int, ...] = ()


Scalar = str | int | float | bool


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """``cursor`` still gives access to what was stepped over while the file is open."""

    version: int
    metadata: dict[str, Scalar | GgufArray]
    tensors: list[TensorInfo]
    header_bytes: int
    data_start: int
    cursor: Cursor
    problems: list[Problem] = field(default_factory=list)

    def numbers(self, array: GgufArray, most: int) -> tuple[int | float | bool, ...]:
        """The first ``most`` items of an array of numbers."""
        if array.type == "str":
            return ()
        count = min(array.length, most)
        layout = f"{self.cursor.order}{count}{array.code}"
        found = struct.unpack_from(layout, self.cursor.buffer, array.start)
        return tuple(map(bool, found)) if array.type == "bool" else found

    def string(self, array: GgufArray, index: int) -> str | None:
        """One item of an array of strings; ``None`` when there is no such item."""
        if array.type != "str" or not 0 <= index < array.length:
            return None
        buffer, pos = self.cursor.buffer, array.marks[index // STRIDE]
        unpack = struct.Struct(f"{self.cursor.order}Q").unpack_from
        for _ in range(index % STRIDE):
            pos += 8 + unpack(buffer, pos)[0]
        size = unpack(buffer, pos)[0]
        return bytes(buffer[pos + 8 : pos + 8 + size]).decode(errors="backslashreplace")


def read_gguf(source: Source) -> GgufHeader:
    """Raises ``Malformed``, ``Refused`` or ``Unreadable``. The source stays open."""
    want = _FIRST_READ
    while True:
        buffer = source.head(want)
        try:
            return _parse(Cursor(source, buffer))
        except Short as short:
            want = max(short.need, 4 * len(buffer))


def _parse(cursor: Cursor) -> GgufHeader:
    if cursor.buffer[:4] != b"GGUF":
        raise cursor.bad(0, "magic", "'GGUF'", ascii(cursor.buffer[:4]))
    cursor.pos = 4
    version = _version(cursor)
    tensors = cursor.count("number of tensors", 24, MAX_TENSORS)
    keys = cursor.count("number of keys", 13, MAX_KEYS)
    problems: list[Problem] = []
    metadata = _metadata(cursor, keys, problems)
    alignment = _alignment(cursor, metadata)
    raw = [_tensor(cursor, index) for index in range(tensors)]
    start = -(-cursor.pos // alignment) * alignment
    infos = _infos(cursor, raw, start, alignment, problems)
    return GgufHeader(version, metadata, infos, cursor.pos, start, cursor, problems)


def _version(cursor: Cursor) -> int:
    version = cursor.u32("version")
    if version & 0xFFFF == 0 and version:
        cursor.set_order(">")
        cursor.pos = 4
        version = cursor.u32("version")
    if version not in (2, 3):
        raise cursor.bad(4, "version", "2 or 3", str(version))
    return version


def _metadata(cursor: Cursor, keys: int, problems: list[Problem]) -> dict[str, Scalar | GgufArray]:
    metadata: dict[str, Scalar | GgufArray] = {}
    strings = MAX_STRINGS
    for index in range(keys):
        at = cursor.pos
        key = cursor.text(f"key {index}", MAX_KEY)
        if not key or key in metadata:
            expected = "a key that did not occur before" if key else "a key that is not empty"
            raise cursor.bad(at, f"key {index}", expected, ascii(key))
        what = f"value of {key!a}"
        type_ = cursor.u32(f"type of {key!a}")
        if type_ == _ARRAY:
            array = _array(cursor, what, strings)
            strings -= array.length if array.type == "str" else 0
            metadata[key] = array
        elif type_ == _STRING:
            metadata[key] = _text(cursor, key, what, problems)
        else:
            metadata[key] = _number(cursor, type_, what)
    return metadata


def _text(cursor: Cursor, key: str, what: str, problems: list[Problem]) -> str:
    raw = cursor.raw(what, MAX_TEXT)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        detail = "The text is not UTF-8; what cannot be read is shown as escapes."
        problems.append(Problem(ProblemKind.METADATA, f"{cursor.name}: {key!a}", detail))
        return raw.decode(errors="backslashreplace")


def _number(cursor: Cursor, type_: int, what: str) -> Scalar:
    at = cursor.pos
    code = _NUMBERS.get(type_)
    if code is None:
        raise cursor.bad(at - 4, f"type of the {what}", "a type from 0 to 12", str(type_))
    value = cursor.unpack(code, what)
    if type_ != _BOOL:
        return value
    if value not in (0, 1):
        raise cursor.bad(at, what, "0 or 1 (a boolean)", str(value))
    return bool(value)


def _array(cursor: Cursor, what: str, strings: int) -> GgufArray:
    at = cursor.pos
    type_ = cursor.u32(f"item type of the {what}")
    if type_ not in _NAMES:
        expected = "a type from 0 to 12 other than 9 (arrays do not nest)"
        raise cursor.bad(at, f"item type of the {what}", expected, str(type_))
    counted = f"number of items in the {what}"
    if type_ == _STRING:
        length = cursor.count(counted, 8, strings)
        start = cursor.pos
        return GgufArray("str", "", length, start, skip_strings(cursor, length, what))
    code = _NUMBERS[type_]
    size = struct.calcsize(f"={code}")
    length = cursor.count(counted, size, cursor.limit)
    start = cursor.take(length * size, what)
    return GgufArray(_NAMES[type_], code, length, start)


def _alignment(cursor: Cursor, metadata: dict[str, Scalar | GgufArray]) -> int:
    value = metadata.get("general.alignment", 32)
    if type(value) is int and 0 < value <= 1 << 30 and value & (value - 1) == 0:
        return value
    shown = f"an array of {value.length}" if isinstance(value, GgufArray) else repr(value)
    place = "the metadata (general.alignment)"
    raise Malformed(cursor.name, place, "a power of two", shown[:100])


_Raw = tuple[str, tuple[int, ...], int, int, int]


def _tensor(cursor: Cursor, index: int) -> _Raw:
    """Name, dimensions, type, offset, and where it stands."""
    at = cursor.pos
    name = cursor.text(f"name of tensor {index}", MAX_NAME)
    what = f"tensor {name[:100]!a}"
    count = cursor.u32(f"number of dimensions of {what}")
    if count > MAX_DIMENSIONS:
        raise cursor.bad(
            cursor.pos - 4, f"dimensions of {what}", f"at most {MAX_DIMENSIONS}", str(count)
        )
    start = cursor.take(8 * count + 12, what)
    *shape, type_, offset = struct.unpack_from(f"{cursor.order}{count}QIQ", cursor.buffer, start)
    if math.prod(shape) > MAX_ELEMENTS or max(shape, default=0) > MAX_ELEMENTS:
        raise cursor.bad(start, f"dimensions of {what}", "fewer than 2^63 elements", str(shape))
    return name, tuple(shape[::-1]), type_, offset, at


def _infos(
    cursor: Cursor, raw: list[_Raw], start: int, alignment: int, problems: list[Problem]
) -> list[TensorInfo]:
    infos, seen = [], set()
    for name, shape, type_, offset, at in raw:
        where = f"{cursor.name}: {name[:100]!a}"
        if name in seen:
            raise cursor.bad(at, "name of a tensor", "one that did not occur before", ascii(name))
        seen.add(name)
        dtype, block, size = TYPES.get(type_, (f"TYPE_{type_}", 1, 0))
        if not size:
            detail = f"Tensor type {type_} is not known: its size cannot be told."
            problems.append(Problem(ProblemKind.SIZE, where, detail))
        if (shape[-1] if shape else 1) % block:
            expected = f"a multiple of {block} ({dtype})"
            raise cursor.bad(at, f"innermost dimension of {name!a}", expected, str(shape[-1:]))
        if offset > MAX_ELEMENTS:
            raise cursor.bad(at, f"offset of {name!a}", "less than 2^63", str(offset))
        if offset % alignment:
            detail = f"Its offset {offset} is no multiple of {alignment}."
            problems.append(Problem(ProblemKind.MISALIGNED, where, detail))
        length = math.prod(shape) // block * size
        infos.append(TensorInfo(name, shape, dtype, length, start + offset, cursor.name))
    return infos
