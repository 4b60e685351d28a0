"""A cheap mark of a file's content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from llmserve.modelfile.source import Source

_BLOCK = 4096
_SAMPLES = 3
_HASHED_HEADER = 1 << 20


def fingerprint(source: Source, header_bytes: int) -> str:
    """Of the size, the first megabyte of the header and its last block, and three blocks
    of the data (beginning, middle, end).

    Hashing a model in full takes minutes; this takes a millisecond. What differs in
    format, metadata, tensor table or size differs here, and so does other training in
    practice; a change of a few weights between the samples does not. Of a remote file no
    block is sampled, and its mark is another than that of a local copy.
    """
    digest = hashlib.sha256(b"llmserve-1 %d %d" % (source.size, header_bytes))
    head = source.head(header_bytes)
    digest.update(head[: min(header_bytes, _HASHED_HEADER)])
    if header_bytes > _HASHED_HEADER:
        digest.update(head[header_bytes - _BLOCK : header_bytes])
    room = max(0, source.size - header_bytes - _BLOCK)
    for sample in range(_SAMPLES if source.sampled else 0):
        digest.update(source.read(header_bytes + room * sample // (_SAMPLES - 1), _BLOCK))
    return digest.hexdigest()[:32]


def combined(marks: Iterable[tuple[str, str]]) -> str:
    """Of several files: (name, mark) each."""
    digest = hashlib.sha256()
    for name, mark in sorted(marks):
        digest.update(f"{name}\0{mark}\0".encode())
    return digest.hexdigest()[:32]
