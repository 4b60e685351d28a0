"""Model files as bytes, right or wrong on purpose."""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

NUMBERS = {"u8": (0, "B"), "i8": (1, "b"), "u16": (2, "H"), "i16": (3, "h"), "u32": (4, "I")}
NUMBERS |= {"i32": (5, "i"), "f32": (6, "f"), "bool": (7, "B"), "u64": (10, "Q")}
NUMBERS |= {"i64": (11, "q"), "f64": (12, "d")}
STRING, ARRAY = 8, 9


@dataclass
class Gguf:
    """A GGUF file. Values of ``keys`` are (type, value); type ``str``, a number's, or
    ``[type]`` for an array. ``tensors``: name → (dimensions as stored, type, bytes).

    ``boundaries`` are the offsets at which each part of the header ends."""

    keys: Mapping[str, tuple[str, Any]] = field(default_factory=dict)
    tensors: Mapping[str, tuple[Sequence[int], int, int]] = field(default_factory=dict)
    version: int = 3
    order: str = "<"
    alignment: int = 32
    n_tensors: int | None = None
    n_keys: int | None = None
    offsets: Mapping[str, int] = field(default_factory=dict)
    boundaries: list[int] = field(default_factory=list)

    def build(self) -> bytes:
        out = bytearray(b"GGUF")
        self.boundaries = [0, 4]

        def put(code: str, *values: Any) -> None:
            out.extend(struct.pack(f"{self.order}{code}", *values))
            self.boundaries.append(len(out))

        def text(value: str | bytes) -> None:
            raw = value.encode() if isinstance(value, str) else value
            put("Q", len(raw))
            out.extend(raw)
            self.boundaries.append(len(out))

        put("I", self.version)
        put("Q", len(self.tensors) if self.n_tensors is None else self.n_tensors)
        put("Q", len(self.keys) if self.n_keys is None else self.n_keys)
        for key, (kind, value) in self.keys.items():
            text(key)
            if kind.startswith("["):
                self._array(kind[1:-1], value, put, text)
            elif kind == "str":
                put("I", STRING)
                text(value)
            else:
                put("I", NUMBERS[kind][0])
                put(NUMBERS[kind][1], value)
        offset = 0
        for name, (shape, type_, size) in self.tensors.items():
            text(name)
            put("I", len(shape))
            put(f"{len(shape)}Q", *shape)
            put("I", type_)
            put("Q", self.offsets.get(name, offset))
            offset += -(-size // self.alignment) * self.alignment
        out.extend(bytes(-len(out) % self.alignment))
        out.extend(bytes(offset))
        return bytes(out)

    def _array(self, kind: str, value: Any, put: Any, text: Any) -> None:
        put("I", ARRAY)
        put("I", STRING if kind == "str" else NUMBERS[kind][0])
        put("Q", len(value))
        if kind == "str":
            for each in value:
                text(each)
        else:
            put(f"{len(value)}{NUMBERS[kind][1]}", *value)


def llama_keys(**more: tuple[str, Any]) -> dict[str, tuple[str, Any]]:
    """A plausible small llama. ``more``: dots are written as two underscores."""
    keys: dict[str, tuple[str, Any]] = {
        "general.architecture": ("str", "llama"),
        "general.name": ("str", "Tiny"),
        "general.license": ("str", "mit"),
        "general.file_type": ("u32", 0),
        "llama.block_count": ("u32", 2),
        "llama.context_length": ("u32", 4096),
        "llama.embedding_length": ("u32", 64),
        "llama.feed_forward_length": ("u32", 128),
        "llama.attention.head_count": ("u32", 8),
        "llama.attention.head_count_kv": ("u32", 2),
        "llama.rope.freq_base": ("f32", 10000.0),
        "tokenizer.ggml.model": ("str", "gpt2"),
        "tokenizer.ggml.tokens": ("[str]", ["<s>", "</s>", *(f"t{i}" for i in range(600))]),
        "tokenizer.ggml.token_type": ("[i32]", [3, 3] + [1] * 600),
        "tokenizer.ggml.bos_token_id": ("u32", 0),
        "tokenizer.ggml.eos_token_id": ("u32", 601),
        "tokenizer.ggml.add_bos_token": ("bool", 1),
        "tokenizer.chat_template": ("str", "{{ messages[0]['content'] }}"),
    }
    return keys | {key.replace("__", "."): value for key, value in more.items()}


def llama_tensors() -> dict[str, tuple[Sequence[int], int, int]]:
    f32 = {"token_embd.weight": (64, 602), "blk.0.attn_q.weight": (64, 64), "norm.weight": (64,)}
    tensors: dict[str, tuple[Sequence[int], int, int]] = {
        name: (shape, 0, 4 * math.prod(shape)) for name, shape in f32.items()
    }
    return tensors | {"blk.0.ffn_up.weight": ((64, 128), 3, 64 * 128 // 32 * 20)}


def llama(**more: Any) -> Gguf:
    return Gguf(keys=llama_keys(), tensors=llama_tensors(), **more)


WIDTHS = {"F32": 4, "BF16": 2, "F16": 2, "I32": 4, "U8": 1, "I64": 8, "F8_E4M3": 1}


def safetensors(
    tensors: Mapping[str, tuple[str, Sequence[int]]],
    metadata: Mapping[str, str] | None = None,
    *,
    pad: int = 8,
) -> bytes:
    """name → (dtype, shape)."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for name, (dtype, shape) in tensors.items():
        end = offset + math.prod(shape) * WIDTHS[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    return raw_safetensors(json.dumps(header).encode(), offset, pad=pad)


def raw_safetensors(header: bytes, data: int = 0, *, pad: int = 1) -> bytes:
    header += b" " * (-len(header) % pad)
    return struct.pack("<Q", len(header)) + header + bytes(data)


def apr2(
    tensors: Mapping[str, tuple[int, Sequence[int], int]],
    metadata: Mapping[str, Any] | None = None,
    *,
    flags: int = 1024,
    count: int | None = None,
    checksum: int | None = None,
) -> bytes:
    """name → (type, shape, bytes)."""
    text = json.dumps(metadata or {}).encode()
    index, data = bytearray(), bytearray()
    for name in sorted(tensors):
        kind, shape, size = tensors[name]
        raw = name.encode()
        index += struct.pack("<H", len(raw)) + raw + bytes([kind, len(shape)])
        index += struct.pack(f"<{len(shape)}QQQ", *shape, len(data), size)
        data += bytes(-(-size // 64) * 64)
    index_at = 64 + -(-len(text) // 64) * 64
    data_at = index_at + -(-len(index) // 64) * 64
    number = len(tensors) if count is None else count
    first = b"APR\0\2\0" + struct.pack("<HIQIQQ", flags, number, 64, len(text), index_at, data_at)
    if checksum is None:
        checksum = zlib.crc32(first + bytes(20))
    out = (first + struct.pack("<I", checksum) + bytes(20) + text).ljust(index_at, b"\0")
    out = (out + bytes(index)).ljust(data_at, b"\0") + bytes(data)
    return out + struct.pack("<I", zlib.crc32(out))


def apr1(tensors: Sequence[Mapping[str, Any]], metadata: Mapping[str, Any]) -> bytes:
    text, index = json.dumps(metadata).encode(), json.dumps(list(tensors)).encode()
    out = b"APR1" + struct.pack("<I", len(text)) + text
    out += struct.pack("<II", len(tensors), len(index)) + index
    out += bytes(sum(each["size"] for each in tensors))
    return out + struct.pack("<I", zlib.crc32(out))


def aprn(metadata: bytes, payload: int = 10) -> bytes:
    head = b"APRN\1\0" + struct.pack("<HIII", 1, len(metadata), payload, payload)
    return head.ljust(32, b"\0") + metadata + bytes(payload + 4)
