"""The corpus of malformed files: name → bytes. Every one must end in a typed error."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator

from tests.unit.modelfile.model_files import (
    Gguf,
    apr1,
    apr2,
    aprn,
    llama,
    llama_keys,
    raw_safetensors,
    safetensors,
)

Case = tuple[str, bytes]
HUGE = (2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)


def gguf_cases() -> Iterator[Case]:
    whole = llama()
    data = whole.build()
    header = whole.boundaries[-1]
    for end in sorted({near for at in whole.boundaries for near in (at - 1, at, at + 1)}):
        if 0 <= end < header:
            yield f"cut at {end}", data[:end]
    for version in (0, 1, 4, 2**16, 2**31):
        yield f"version {version}", llama(version=version).build()
    for order in "<>":
        for count in HUGE:
            yield f"{order} {count} tensors", llama(n_tensors=count, order=order).build()
            yield f"{order} {count} keys", llama(n_keys=count, order=order).build()
        yield f"{order} one tensor more", Gguf(n_tensors=1, order=order).build()
    yield "more keys than allowed", Gguf(n_keys=10_001).build() + bytes(500_000)
    yield from (_key_cases())
    yield from _array_cases()
    yield from _tensor_cases()


def _key(raw: bytes, order: str = "<") -> bytes:
    """A file of one key, given as bytes."""
    return b"GGUF" + struct.pack(f"{order}IQQ", 3, 0, 1) + raw


def _text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def _key_cases() -> Iterator[Case]:
    yield "empty key", _key(_text(b"") + struct.pack("<IB", 0, 1))
    yield "key that is not UTF-8", _key(_text(b"\xff\xfe") + struct.pack("<IB", 0, 1))
    yield "key that is too long", _key(_text(b"k" * 65_536) + struct.pack("<IB", 0, 1))
    one = _text(b"k") + struct.pack("<IB", 0, 1)
    yield "key twice", b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + one + one
    for size in HUGE:
        yield f"key of {size} bytes", _key(struct.pack("<Q", size) + b"k")
        yield f"value of {size} bytes", _key(_text(b"k") + struct.pack("<IQ", 8, size))
        yield f"array of {size} bytes", _key(_text(b"k") + struct.pack("<IIQ", 9, 0, size))
        yield f"array of {size} strings", _key(_text(b"k") + struct.pack("<IIQ", 9, 8, size))
        yield f"array of {size} u64", _key(_text(b"k") + struct.pack("<IIQ", 9, 10, size))
        array = struct.pack("<IIQQ", 9, 8, 1, size)
        yield f"string of {size} in an array", _key(_text(b"k") + array)
    for type_ in (13, 255, 2**32 - 1):
        yield f"type {type_}", _key(_text(b"k") + struct.pack("<IQ", type_, 0))
        yield f"array of type {type_}", _key(_text(b"k") + struct.pack("<IIQ", 9, type_, 0))
    yield "boolean of 2", _key(_text(b"k") + struct.pack("<IB", 7, 2))
    yield "array in an array", _key(_text(b"k") + struct.pack("<IIQIQ", 9, 9, 1, 0, 0))
    nest = struct.pack("<IQ", 9, 1) * 50_000
    yield "arrays in arrays without end", _key(_text(b"k") + struct.pack("<I", 9) + nest)
    for alignment in (("u32", 0), ("u32", 3), ("u32", 2**31), ("str", "32"), ("i32", -32)):
        yield f"alignment {alignment}", Gguf(keys={"general.alignment": alignment}).build()
    yield "alignment as an array", Gguf(keys={"general.alignment": ("[u32]", [32])}).build()


def _array_cases() -> Iterator[Case]:
    """Strings end behind the file, in each place a stride can break."""
    for count in (1, 15, 16, 17, 255, 256, 257, 600):
        for last in (2**64 - 1, 2**63, 1000):
            items = _text(b"abc") * (count - 1) + struct.pack("<Q", last)
            array = struct.pack("<IIQ", 9, 8, count)
            yield f"string {count} of {last}", _key(_text(b"k") + array + items)
    long = _text(b"x" * 200) * 300
    head = struct.pack("<IIQ", 9, 8, 301)
    yield "long strings, one missing", _key(_text(b"k") + head + long)


def _tensor_cases() -> Iterator[Case]:
    def one(name: bytes, tail: bytes, count: int = 1) -> bytes:
        head = b"GGUF" + struct.pack("<IQQ", 3, count, 0)
        return head + (_text(name) + tail) * count + bytes(256)

    yield "tensor twice", one(b"t", struct.pack("<IQIQ", 1, 4, 0, 0), 2)
    yield "tensor that is not UTF-8", one(b"\xff", struct.pack("<IQIQ", 1, 4, 0, 0))
    yield "tensor of 5 dimensions", one(b"t", struct.pack("<I5QIQ", 5, 1, 1, 1, 1, 1, 0, 0))
    yield "tensor of 2^32-1 dimensions", one(b"t", struct.pack("<IQ", 2**32 - 1, 1))
    for shape in ((2**63,), (2**32, 2**32), (2**64 - 1, 0), (2**31, 2**31, 2**31)):
        packed = struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, 0)
        yield f"tensor of shape {shape}", one(b"t", packed)
    yield "blocks that do not divide", one(b"t", struct.pack("<IQIQ", 1, 33, 2, 0))
    yield "offset 2^64-1", one(b"t", struct.pack("<IQIQ", 1, 4, 0, 2**64 - 1))
    yield "name of 2^64-1 bytes", b"GGUF" + struct.pack("<IQQQ", 3, 1, 0, 2**64 - 1) + bytes(64)
    yield "name of 70,000 bytes", one(b"n" * 70_000, struct.pack("<IQIQ", 1, 4, 0, 0))


def heavy_gguf_cases() -> Iterator[Case]:
    """Files that are only bad because of their size."""
    strings = 6_000_000
    array = struct.pack("<IIQ", 9, 8, strings)
    yield "6,000,000 empty strings", _key(_text(b"k") + array) + bytes(8 * strings)
    some = 1_190_000
    array = struct.pack("<IIQ", 9, 8, some)
    body = (_text(b"") * 250 + _text(b"x" * 70) * 6) * (some // 256)
    yield "strings of mixed lengths", _key(_text(b"k") + array + body)
    keys = b"".join(_text(b"%08d" % each) + struct.pack("<IB", 0, 1) for each in range(9_999))
    yield "10,000 keys, the last cut", b"GGUF" + struct.pack("<IQQ", 3, 0, 10_000) + keys
    entry = b"".join(_text(b"%08d" % each) + struct.pack("<IIQ", 0, 0, 0) for each in range(32_767))
    yield "32,768 tensors, the last cut", b"GGUF" + struct.pack("<IQQ", 3, 32_768, 0) + entry
    yield "a text of 48 MB", _key(_text(b"k") + struct.pack("<I", 8) + _text(bytes(48_000_000)))
    names = b"".join(
        _text(b"%065000d" % each) + struct.pack("<IIQ", 0, 0, 0) for each in range(700)
    )
    yield "45 MB of names", b"GGUF" + struct.pack("<IQQ", 3, 700, 0) + names


TENSOR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def safetensors_cases() -> Iterator[Case]:
    data = safetensors({"a": ("F32", (3, 4)), "b": ("BF16", (2,))}, {"k": "v"}, pad=1)
    for end in range(9, len(data) - 52):
        # What remains no longer holds the header that its first bytes promise.
        yield f"cut at {end}", data[:end]
    good = json.dumps({"a": TENSOR}).encode()
    for size in (*HUGE, 10**8, 10**8 + 1, len(good) + 9):
        yield f"header of {size}", struct.pack("<Q", size) + good + bytes(8)
    for size in range(2, len(good)):
        yield f"header cut to {size}", struct.pack("<Q", size) + good[:size]
    for what, text in _headers().items():
        yield what, raw_safetensors(text, 8)


def _headers() -> dict[str, bytes]:
    good = json.dumps(TENSOR).encode()
    odd = {
        "shape -1": {**TENSOR, "shape": [-1]},
        "shape 1.0": {**TENSOR, "shape": [1.0]},
        "shape text": {**TENSOR, "shape": ["2"]},
        "shape true": {**TENSOR, "shape": [True]},
        "shape of shapes": {**TENSOR, "shape": [[2]]},
        "nine dimensions": {**TENSOR, "shape": [1] * 9},
        "product overflows": {**TENSOR, "shape": [2**40, 2**40]},
        "dimension of 400 digits": {**TENSOR, "shape": [10**400]},
        "three offsets": {**TENSOR, "data_offsets": [0, 4, 8]},
        "one offset": {**TENSOR, "data_offsets": [0]},
        "negative offset": {**TENSOR, "data_offsets": [-8, 0]},
        "offsets decrease": {**TENSOR, "data_offsets": [8, 0]},
        "offset of 20 digits": {**TENSOR, "data_offsets": [0, 10**20]},
        "dtype a number": {**TENSOR, "dtype": 1},
        "dtype empty": {**TENSOR, "dtype": ""},
        "no dtype": {"shape": [2], "data_offsets": [0, 8]},
        "no members": {},
        "a member more": {**TENSOR, "extra": 1},
    }
    found = {what: json.dumps({"a": each}).encode() for what, each in odd.items()}
    deep = b"[" * 100_000
    return found | {
        "not an object": b'{"a"',
        "list": b"[]",
        "space first": b" {}",
        "tensor twice": b'{"a":%s,"a":%s}' % (good, good),
        "tensor twice, once escaped": b'{"a":%s,"\\u0061":%s}' % (good, good),
        "metadata twice": b'{"__metadata__":{},"__metadata__":{}}',
        "metadata key twice": b'{"__metadata__":{"a":"","a":""}}',
        "metadata a number": b'{"__metadata__":{"a":1}}',
        "metadata nested": b'{"__metadata__":{"a":{}}}',
        "metadata a text": b'{"__metadata__":"a"}',
        "dtype twice": b'{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
        "name not UTF-8": b'{"\xff":%s}' % good,
        "name a lone surrogate": b'{"\\ud800":%s}' % good,
        "name with a bad escape": b'{"\\x":%s}' % good,
        "name with a line break": b'{"a\n":%s}' % good,
        "name too long": b'{"%s":%s}' % (b"n" * 70_000, good),
        "comma at the end": b'{"a":%s,}' % good,
        "no comma": b'{"a":%s "b":%s}' % (good, good),
        "something behind": b'{"a":%s}x' % good,
        "deep": b'{"a":' + deep,
        "deep shape": b'{"a":{"dtype":"F32","shape":' + deep,
        "deep metadata": b'{"__metadata__":' + deep,
        "NaN": b'{"a":NaN}',
        "comment": b'{/* */"a":%s}' % good,
        "single quotes": good.replace(b'"', b"'"),
    }


def heavy_safetensors_cases() -> Iterator[Case]:
    size = 48_000_000
    yield "48 MB of spaces", raw_safetensors(b"{" + b" " * size)
    yield "48 MB in one name", raw_safetensors(b'{"' + b"n" * size + b'":')
    yield "48 MB of quotes", raw_safetensors(b'{"a' + b'\\"' * (size // 2) + b'":')
    yield "48 MB of brackets", raw_safetensors(b'{"a":' + b"[" * size)
    pair = b'"%08d":"",'
    pairs = b"".join(pair % each for each in range(400_000))
    yield "400,000 metadata", raw_safetensors(b'{"__metadata__":{' + pairs)
    value = b'"%06d":"' + b"v" * 60_000 + b'",'
    texts = b"".join(value % each for each in range(700))
    yield "42 MB of metadata", raw_safetensors(b'{"__metadata__":{' + texts)
    entry = b'"%08d":{"dtype":"U8","shape":[],"data_offsets":[0,1]},'
    entries = b"".join(entry % each for each in range(45_000))
    yield "45,000 tensors and no end", raw_safetensors(b"{" + entries)
    numbers = b"1," * (size // 2)
    yield "24,000,000 dimensions", raw_safetensors(b'{"a":{"dtype":"U8","shape":[' + numbers)


def apr_cases() -> Iterator[Case]:
    data = apr2({"a": (0, (3, 4), 48), "b": (12, (256,), 144)}, {"name": "x"})
    for end in range(4, 194):
        # The index ends there. What follows are the data, which may be cut off.
        yield f"2: cut at {end}", data[:end]
    for count in (3, 2**31, 2**32 - 1):
        yield f"2: {count} tensors", apr2({"a": (0, (4,), 16)}, count=count)
    for place, code, value in (
        (12, "<Q", 2**64 - 1),
        (12, "<Q", 10**6),
        (20, "<I", 2**32 - 1),
        (24, "<Q", 2**64 - 1),
        # The index, or the metadata, is the header that names it.
        (24, "<Q", 0),
        (24, "<Q", 24),
        (12, "<Q", 0),
        (12, "<Q", 24),
        (32, "<Q", 0),
    ):
        field = struct.pack(code, value)
        yield f"2: {value} at {place}", data[:place] + field + data[place + len(field) :]
    yield "2: encrypted", apr2({}, flags=4)
    yield "2: shape overflows", apr2({"a": (0, (2**40, 2**40), 48)})
    yield "2: nine dimensions", apr2({"a": (0, (1,) * 9, 4)})
    yield "2: metadata is no JSON", data.replace(b'{"name"', b'["name"')
    yield "2: metadata is a list", data.replace(b'{"name": "x"}', b'["name","xy"]')
    yield "APR2", b"APR2" + bytes(100)
    tensor = {"name": "l", "dtype": "F32", "shape": [2, 2], "offset": 0, "size": 16}
    yield "1: tensor twice", apr1([tensor, tensor], {})
    for key, value in (("shape", [-1]), ("shape", None), ("size", 1.5), ("name", 1), ("dtype", {})):
        text = json.dumps({**tensor, key: value}).encode()
        head = b"APR1" + struct.pack("<I", 2) + b"{}" + struct.pack("<II", 1, len(text) + 2)
        yield f"1: {key} {value}", head + b"[" + text + b"]" + bytes(20)
    whole = apr1([tensor], {"name": "x"})
    for end in range(4, whole.index(b"}]") + 2):
        yield f"1: cut at {end}", whole[:end]
    for size in (2**32 - 1, 2**31):
        yield f"1: metadata of {size}", b"APR1" + struct.pack("<I", size) + b"{}" + bytes(99)
        yield f"N: metadata of {size}", b"APRN" + struct.pack("<III", 1, size, 0) + bytes(99)
    for raw in (b"\x81", b"\xc1", b"\x91" * 100, b"\xdf\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff"):
        yield f"N: {raw[:4]!r}", aprn(raw)


def unknown_cases() -> Iterator[Case]:
    yield "empty", b""
    yield "one byte", b"G"
    yield "zeros", bytes(1000)
    yield "text", b"Hello, world. This is no model."
    yield "swapped", b"FUGG" + bytes(100)
    yield "old", b"tjgg" + bytes(100)


def light_cases() -> Iterator[Case]:
    for kind, cases in (
        ("gguf", gguf_cases()),
        ("safetensors", safetensors_cases()),
        ("apr", apr_cases()),
        ("unknown", unknown_cases()),
    ):
        for name, data in cases:
            yield f"{kind}: {name}", data


def heavy_cases() -> Iterator[Case]:
    yield from heavy_gguf_cases()
    yield from heavy_safetensors_cases()


def seeds() -> list[bytes]:
    """Small valid files, to make bad ones from."""
    return [
        llama().build(),
        llama(order=">", version=2).build(),
        Gguf(keys=llama_keys(x__y=("[f64]", [1.0] * 20))).build(),
        safetensors({"a": ("F32", (3, 4)), "b": ("BF16", (2,))}, {"k": "v"}),
        apr2({"a": (0, (3, 4), 48), "b": (12, (256,), 144)}, {"name": "x", "num_layers": 2}),
        apr1([{"name": "l", "dtype": "F32", "shape": [4], "offset": 0, "size": 16}], {"a": "b"}),
        aprn(b"\x82\xa4name\xa3abc\xa1k\x93\x01\x02\xcb\x3f\xf0" + bytes(6)),
        b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01K\x01u.",
    ]
