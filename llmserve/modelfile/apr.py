"""APR, the format of the ``apr`` tool (github.com/paiml/aprender).

Three layouts are in use, all little-endian:

* ``APR\\0`` (version 2): a header of 64 bytes, JSON metadata, a binary index of tensors
  sorted by name, data aligned to 64 bytes, a CRC-32 of the file at the end.
* ``APR1``: u32 length and JSON metadata, u32 number of tensors, u32 length and a JSON
  list of them, the data, a CRC-32. (``APR2`` is the same, compressed: refused.)
* ``APRN`` (version 1): a header of 32 bytes, MessagePack metadata, and one payload that
  only that library can read: it has no table of tensors.
"""

from __future__ import annotations

import zlib

from llmserve.modelfile.apr_old import read_apr1, read_aprn
from llmserve.modelfile.apr_parts import MAX_TENSORS, AprHeader, add_tensor, note, read_metadata
from llmserve.modelfile.cursor import Cursor
from llmserve.modelfile.errors import Malformed, Refused
from llmserve.modelfile.source import Source
from llmserve.modelfile.types import Problem, ProblemKind

_FLAGS = {
    1: "Its payload is compressed with LZ4.",
    2: "Its payload is compressed with Zstandard.",
    16: "It is one part of a model of several files.",
    2048: "Its tensors are column-major: a faulty import of a GGUF.",
}
_ENCRYPTED = 4


def read_apr(source: Source) -> AprHeader:
    """Raises ``Malformed``, ``Refused`` or ``Unreadable``. The source stays open."""
    magic = source.read(0, 4)
    if magic == b"APR\0":
        return _read_2(source)
    if magic == b"APR1":
        return read_apr1(source)
    if magic == b"APRN":
        return read_aprn(source)
    if magic == b"APR2":
        raise Refused(source.name, "it is a compressed APR file (APR2)")
    raise Malformed(source.name, "byte 0 (magic)", "'APR'", ascii(magic))


def _read_2(source: Source) -> AprHeader:
    raw = source.read(0, 64)
    if len(raw) < 64:
        raise Malformed(source.name, "byte 0 (header)", "64 bytes", str(len(raw)))
    cursor = Cursor(source, raw)
    cursor.pos = 8
    count, metadata_at = cursor.u32("number of tensors"), cursor.u64("metadata offset")
    size, index_at = cursor.u32("metadata size"), cursor.u64("tensor index offset")
    data_at, checksum = cursor.u64("data offset"), cursor.u32("checksum")
    header = AprHeader(f"{raw[4]}.{raw[5]}", {}, [], max(64, min(data_at, cursor.limit)), data_at)
    _check(source, header, raw, checksum)
    header.metadata = read_metadata(source, metadata_at, size)
    _index(source, header, index_at, count)
    return header


def _check(source: Source, header: AprHeader, raw: bytes, checksum: int) -> None:
    flags = int.from_bytes(raw[6:8], "little")
    if flags & _ENCRYPTED:
        raise Refused(source.name, "it is encrypted")
    for bit, detail in _FLAGS.items():
        if flags & bit:
            note(header, source, "flags", detail)
    # The library leaves the field out of the sum; its documentation counts it as zeros.
    before, behind = raw[:40], raw[44:]
    if checksum not in (zlib.crc32(before + behind), zlib.crc32(before + bytes(4) + behind)):
        where = f"{source.name}: byte 40"
        detail = "The checksum of the header is wrong."
        header.problems.append(Problem(ProblemKind.CHECKSUM, where, detail))


def _index(source: Source, header: AprHeader, at: int, count: int) -> None:
    """Per tensor: u16 length and name, u8 type, u8 dimensions, u64 each, u64 offset in
    the data, u64 size."""
    end = min(header.data_start, source.size)
    allowed = min(MAX_TENSORS, max(0, end - at) // 20)
    if count > allowed:
        raise Malformed(source.name, "byte 8 (number of tensors)", f"at most {allowed}", str(count))
    text = source.read(at, min(end - at, count * 2400)) if count else b""
    pos, seen = 0, set[str]()
    for number in range(count):
        where = f"byte {at + pos} (tensor {number} of the index)"
        length = int.from_bytes(text[pos : pos + 2], "little")
        dimensions = int.from_bytes(text[pos + 3 + length : pos + 4 + length], "little")
        fixed = pos + 2 + length
        stop = fixed + 18 + 8 * dimensions
        if stop > len(text) or dimensions > 8:
            raise Malformed(source.name, where, "an entry with up to 8 dimensions")
        name = text[pos + 2 : fixed].decode(errors="backslashreplace")
        numbers = [int.from_bytes(text[k : k + 8], "little") for k in range(fixed + 2, stop, 8)]
        if name in seen:
            raise Malformed(source.name, where, "a name that did not occur before", ascii(name))
        seen.add(name)
        *shape, offset, size = numbers
        add_tensor(source, header, where, (name, text[fixed], shape, offset, size))
        pos = stop
