"""As much of MessagePack as APR's first version uses for its metadata."""

from __future__ import annotations

import struct
from typing import Any

from llmserve.modelfile.errors import Malformed

MAX_DEPTH = 32
MAX_ITEMS = 50_000

_NUMBERS = {0xCA: "f", 0xCB: "d", 0xCC: "B", 0xCD: "H", 0xCE: "I", 0xCF: "Q"}
_NUMBERS |= {0xD0: "b", 0xD1: "h", 0xD2: "i", 0xD3: "q"}
_SIZED = {0xD9: ("B", "text"), 0xDA: ("H", "text"), 0xDB: ("I", "text")}
_SIZED |= {0xC4: ("B", "bytes"), 0xC5: ("H", "bytes"), 0xC6: ("I", "bytes")}
_SIZED |= {0xDC: ("H", "list"), 0xDD: ("I", "list"), 0xDE: ("H", "map"), 0xDF: ("I", "map")}
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}


def unpack_map(name: str, data: bytes, start: int) -> dict[str, Any]:
    """One map. ``start`` is where ``data`` begin in the file. Raises ``Malformed``."""
    value = _Reader(name, data, start).value(0)
    if not isinstance(value, dict):
        raise Malformed(name, f"byte {start} (metadata)", "a MessagePack map")
    return value


class _Reader:
    def __init__(self, name: str, data: bytes, start: int) -> None:
        self.name, self.data, self.start = name, data, start
        self.pos = 0
        self.items = 0

    def value(self, depth: int) -> Any:
        self.items += 1
        if depth > MAX_DEPTH or self.items > MAX_ITEMS:
            raise self.bad(f"at most {MAX_ITEMS} values, {MAX_DEPTH} deep")
        first = self.take(1)[0]
        if first < 0x80 or first >= 0xE0:
            return first if first < 0x80 else first - 256
        if first < 0xC0:
            kind = "map" if first < 0x90 else "list" if first < 0xA0 else "text"
            return self.sized(kind, first & (31 if kind == "text" else 15), depth)
        if first in _CONSTANTS:
            return _CONSTANTS[first]
        if first in _NUMBERS:
            return self.number(_NUMBERS[first])
        if first in _SIZED:
            code, kind = _SIZED[first]
            return self.sized(kind, int(self.number(code)), depth)
        raise self.bad("a MessagePack value")

    def sized(self, kind: str, size: int, depth: int) -> Any:
        if kind in ("text", "bytes"):
            raw = self.take(size)
            return raw.decode(errors="backslashreplace") if kind == "text" else f"({size} bytes)"
        if kind == "list":
            return [self.value(depth + 1) for _ in range(size)]
        return {str(self.value(depth + 1)): self.value(depth + 1) for _ in range(size)}

    def number(self, code: str) -> int | float:
        value: int | float = struct.unpack(f">{code}", self.take(struct.calcsize(f">{code}")))[0]
        return value

    def take(self, size: int) -> bytes:
        raw = self.data[self.pos : self.pos + size]
        if len(raw) < size:
            raise self.bad(f"{size} bytes more")
        self.pos += size
        return raw

    def bad(self, expected: str) -> Malformed:
        return Malformed(self.name, f"byte {self.start + self.pos} (metadata)", expected)
