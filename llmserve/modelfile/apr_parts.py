"""What the layouts of APR have in common."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from llmserve.modelfile.errors import Malformed
from llmserve.modelfile.jsontext import MAX_CONFIG, load_object
from llmserve.modelfile.jsonwalk import parse
from llmserve.modelfile.source import Source
from llmserve.modelfile.types import Problem, ProblemKind, TensorInfo

MAX_TENSORS = 32_768
MAX_METADATA = 16 << 20
MAX_ELEMENTS = 2**63 - 1

_TYPES = {0: ("F32", 4), 1: ("F16", 2), 3: ("F64", 8), 4: ("I32", 4), 5: ("I64", 8)}
_TYPES |= {6: ("I8", 1), 7: ("U8", 1), 30: ("BF16", 2), 8: ("APR_Q4", 0), 9: ("APR_Q8", 0)}
_TYPES |= {128: ("APR_Q4", 0), 129: ("APR_Q8", 0), 12: ("Q4_K", 0), 14: ("Q6_K", 0)}
"""Name and bytes per element (0: packed). 8 and 9 are older numbers of 128 and 129."""

_BY_NAME = {each[0]: each for each in _TYPES.values()}


@dataclass(slots=True)
class AprHeader:
    """What any of the three layouts gives."""

    version: str
    metadata: dict[str, Any]
    tensors: list[TensorInfo]
    header_bytes: int
    data_start: int
    problems: list[Problem] = field(default_factory=list)


def read_metadata(source: Source, at: int, size: int) -> dict[str, Any]:
    """JSON with a vocabulary in it is long: long values are stepped over."""
    if size > MAX_METADATA or at > source.size - size:
        room = min(MAX_METADATA, max(0, source.size - at))
        raise Malformed(
            source.name, "byte 12 (metadata)", f"at most {room} bytes", f"{size} at {at}"
        )
    text = source.read(at, size)
    if size > MAX_CONFIG:
        return parse(source.name, text, 0, size)
    return load_object(source.name, text) if size else {}


def add_tensor(
    source: Source, header: AprHeader, where: str, entry: tuple[str, int | str, list[int], int, int]
) -> None:
    name, kind, shape, offset, size = entry
    elements = math.prod(shape)
    if elements > MAX_ELEMENTS or offset + size > MAX_ELEMENTS:
        raise Malformed(source.name, where, "sizes below 2^63", f"{shape}, {offset} + {size}"[:100])
    known = _TYPES.get(kind) if isinstance(kind, int) else _BY_NAME.get(kind.upper())
    dtype, width = known or (f"TYPE_{kind}"[:30], 0)
    place = f"{source.name}: {name[:100]!a}"
    if width and elements * width != size:
        detail = f"It has {size} bytes; {shape} of {dtype} are {elements * width}."
        header.problems.append(Problem(ProblemKind.SIZE, place, detail))
    if known is None:
        detail = f"Its type {kind!r:.30} is not known."
        header.problems.append(Problem(ProblemKind.SIZE, place, detail))
    start = header.data_start + offset
    header.tensors.append(TensorInfo(name, tuple(shape), dtype, size, start, source.name))


def note(header: AprHeader, source: Source, where: str, detail: str) -> None:
    header.problems.append(Problem(ProblemKind.METADATA, f"{source.name}: {where}", detail))
