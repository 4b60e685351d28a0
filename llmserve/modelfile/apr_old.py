"""The older layouts of APR: ``APR1`` and ``APRN`` (see ``apr.py``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmserve.modelfile.apr_parts import MAX_TENSORS, AprHeader, add_tensor, note, read_metadata
from llmserve.modelfile.errors import Malformed
from llmserve.modelfile.jsontext import MAX_CONFIG, is_count, load_object
from llmserve.modelfile.msgpack import unpack_map
from llmserve.modelfile.source import Source
from llmserve.modelfile.types import Problem, ProblemKind


def read_apr1(source: Source) -> AprHeader:
    """``APR1``."""
    size = int.from_bytes(source.read(4, 4), "little")
    metadata = read_metadata(source, 8, size)
    at = 8 + size
    count = int.from_bytes(source.read(at, 4), "little")
    length = int.from_bytes(source.read(at + 4, 4), "little")
    if at + 8 + length > source.size or length > MAX_CONFIG or count > MAX_TENSORS:
        expected = f"an index of at most {max(0, min(MAX_CONFIG, source.size - at - 8))} bytes"
        raise Malformed(source.name, f"byte {at} (tensor index)", expected, str(length))
    text = source.read(at + 8, length)
    header = AprHeader("1 (APR1)", metadata, [], at + 8 + length, at + 8 + length)
    where = f"byte {at + 8} (tensor index)"
    entries = load_object(source.name, b'{"tensors":%s}' % (text or b"[]"))["tensors"]
    if not isinstance(entries, list) or len(entries) != count:
        raise Malformed(source.name, where, f"a list of {count} tensors")
    seen = set()
    for entry in entries:
        valid = _json_entry(entry)
        if valid is None or valid[0] in seen:
            expected = "name, dtype, shape, offset and size, each name once"
            raise Malformed(source.name, where, expected, ascii(entry)[:100])
        seen.add(valid[0])
        add_tensor(source, header, where, valid)
    return header


def _json_entry(entry: Any) -> tuple[str, str, list[int], int, int] | None:
    if not isinstance(entry, Mapping):
        return None
    name, dtype, shape = entry.get("name"), entry.get("dtype"), entry.get("shape")
    offset, size = entry.get("offset"), entry.get("size")
    if not (isinstance(name, str) and isinstance(dtype, str) and isinstance(shape, list)):
        return None
    numbers = [*shape, offset, size]
    if len(shape) > 8 or not all(each == 0 or is_count(each) for each in numbers):
        return None
    return name, dtype, shape, int(offset or 0), int(size or 0)


def read_aprn(source: Source) -> AprHeader:
    """``APRN``."""
    raw = source.read(0, 32)
    if len(raw) < 32:
        raise Malformed(source.name, "byte 0 (header)", "32 bytes", str(len(raw)))
    size, payload = (int.from_bytes(raw[k : k + 4], "little") for k in (8, 12))
    if 32 + size > source.size or size > MAX_CONFIG:
        allowed = f"at most {min(MAX_CONFIG, source.size - 32)} bytes"
        raise Malformed(source.name, "byte 8 (metadata size)", allowed, str(size))
    metadata = unpack_map(source.name, source.read(32, size), 32) if size else {}
    metadata = {**metadata, "apr.model_type": int.from_bytes(raw[6:8], "little")}
    header = AprHeader(f"{raw[4]}.{raw[5]} (APRN)", metadata, [], 32 + size, 32 + size)
    note(header, source, "payload", "It has no table of tensors: only aprender can read it.")
    if 32 + size + payload > source.size:
        where, detail = f"{source.name}: payload", f"It ends behind the file ({payload} bytes)."
        header.problems.append(Problem(ProblemKind.TRUNCATED, where, detail))
    return header
