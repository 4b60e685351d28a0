"""What a file is, by its first bytes."""

from __future__ import annotations

import pickletools
from collections.abc import Iterator

from llmserve.modelfile.source import Source
from llmserve.modelfile.types import Detected, Format

_LOOK = 65_536
_APR = {b"APR\0": "2", b"APRN": "1", b"APR1": "APR1", b"APR2": "APR2, compressed"}
_ZIP = b"PK\x03\x04"
_TEXT_PICKLES = (b"(dp", b"(lp", b"c__", b"ccopy_reg\n", b"cos\n", b"cposix\n", b"cbuiltins\n")
_HINTS = (
    (b"\x89HDF\r\n", "That is HDF5, as Keras writes it"),
    (b"version https://git-lfs", "It is a Git LFS pointer: the file itself was not fetched"),
    (b"<!DOCTYPE", "It is a web page: the download went wrong"),
    (b"<html", "It is a web page: the download went wrong"),
    (b"{", "It is a JSON file"),
    (b"PK", "It is a zip file"),
    (b"\x1f\x8b", "It is compressed with gzip"),
    (b"\x28\xb5\x2f\xfd", "It is compressed with Zstandard"),
    (b"lmgg", "That is GGML, the format before GGUF"),
    (b"tjgg", "That is GGJT, a format before GGUF"),
    (b"fmgg", "That is GGMF, a format before GGUF"),
    (b"FUGG", "Its bytes are swapped"),
    (b"\x08", "Perhaps an ONNX file"),
)


def detect_source(source: Source) -> Detected:
    """Reads 64 KB at most."""
    head = bytes(source.read(0, 32))
    if head.startswith(b"GGUF"):
        return Detected(Format.GGUF, _gguf_version(head))
    if head[:4] in _APR:
        return Detected(Format.APR, f"APR {_APR[head[:4]]}")
    if _is_safetensors(head, source.size):
        return Detected(Format.SAFETENSORS, "SafeTensors")
    if reason := _pickle_reason(source, head):
        return Detected(Format.PICKLE, reason)
    return Detected(Format.UNKNOWN, hint(head))


def hint(head: bytes) -> str:
    """What an unknown file probably is; empty when nobody can tell."""
    return next((words for start, words in _HINTS if head.startswith(start)), "")


def _gguf_version(head: bytes) -> str:
    little = int.from_bytes(head[4:8], "little")
    if little & 0xFFFF == 0 and little:
        return f"GGUF {int.from_bytes(head[4:8], 'big')}, big-endian"
    return f"GGUF {little}"


def _is_safetensors(head: bytes, size: int) -> bool:
    """The length of the header must be possible, and an object begin behind it. A length
    that is not still counts when the object begins like that of a tensor."""
    if head[8:9] != b"{":
        return False
    plausible = 2 <= int.from_bytes(head[:8], "little") <= size - 8
    return plausible or head[8:10] in (b'{"', b"{}", b"{ ")


def _pickle_reason(source: Source, head: bytes) -> str | None:
    """Why the file is refused, when it is a pickle: alone, or in PyTorch's zip."""
    if head.startswith(_ZIP):
        data = source.read(0, _LOOK)
        length = int.from_bytes(data[26:28], "little")
        name = data[30 : 30 + length]
        if not name.endswith((b".pkl", b"/version", b"/byteorder", b".format_version")):
            return None
        start = 30 + length + int.from_bytes(data[28:30], "little")
        return _reason("a PyTorch checkpoint (a zip file with a pickle in it)", data[start:])
    if head[:1] == b"\x80" and len(head) > 2 and 1 <= head[1] <= 5:
        return _reason("a Python pickle, as PyTorch writes it", source.read(0, _LOOK))
    if head.startswith(_TEXT_PICKLES):
        return _reason("a Python pickle", source.read(0, _LOOK))
    return None


def _reason(what: str, data: bytes) -> str:
    names = ", ".join(dict.fromkeys(_imports(data)))
    calls = f" (this one imports {names[:200]})" if names else ""
    return f"it is {what}, and loading one executes the code it names{calls}"


def _imports(data: bytes) -> Iterator[str]:
    """What the pickle would import, read without running it."""
    texts: list[str] = []
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if opcode.name in ("GLOBAL", "INST"):
                yield ascii(str(argument).replace(" ", "."))[1:-1]
            elif opcode.name == "STACK_GLOBAL" and len(texts) == 2:
                yield ascii(".".join(texts))[1:-1]
            elif isinstance(argument, str):
                texts = [*texts[-1:], argument[:100]]
            if count > 2000:
                return
    except Exception:  # the disassembler raises whatever the bytes make it
        return
