"""The process that reads model files: ``python -m llmserve.catalog.worker``.

Describing a large model holds Python's lock for milliseconds at a time; in the server's
own process every stream would wait for that. Here nobody waits: it runs at a lower
priority, with bounded memory, and a file that is cut short under its memory map ends this
process (SIGBUS) and not the server.

Questions come on standard input, answers leave on standard output, each as a length (u32)
and JSON. The end of the input ends the process.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from typing import Any, BinaryIO

import msgspec

from llmserve.catalog.answers import Described, answer
from llmserve.catalog.places import find_places
from llmserve.errors import LlmserveError
from llmserve.modelfile.errors import ModelFileError, Refused
from llmserve.modelfile.views import plain

MEMORY_BYTES = 2 << 30
MAX_ANSWER = 32 << 20
_NICE = 5


def main() -> int:
    """Answer until the input ends."""
    # macOS knows no limit of the address space.
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.nice(_NICE)
    described = Described()
    source, target = sys.stdin.buffer, sys.stdout.buffer
    while (question := _receive(source)) is not None:
        _send(target, *_answer(described, question))
    return 0


def _answer(described: Described, question: dict[str, Any]) -> tuple[bytes, bytes]:
    """The failure (empty when there is none), and the answer."""
    name = question.get("name") or "the model"
    try:
        try:
            body = _ask(described, question)
            if len(body) > MAX_ANSWER:
                raise Refused(name, f"what it says is longer than {MAX_ANSWER:,} bytes")
            return b"", body
        except MemoryError as error:
            raise Refused(name, "describing it takes too much memory") from error
    except LlmserveError as error:
        file = error.file if isinstance(error, ModelFileError) else name
        failure = {"message": error.message, "code": error.code, "file": file}
        return msgspec.json.encode(failure), b""


def _ask(described: Described, question: dict[str, Any]) -> bytes:
    args = question["args"]
    if question["question"] == "places":
        return msgspec.json.encode([plain(place) for place in find_places(**args)])
    model = described.get(question["path"], question["root"])
    return msgspec.json.encode(answer(model, question["question"], args))


def _receive(source: BinaryIO) -> dict[str, Any] | None:
    size = source.read(4)
    if len(size) < 4:
        return None
    question: dict[str, Any] = msgspec.json.decode(source.read(int.from_bytes(size, "little")))
    return question


def _send(target: BinaryIO, failure: bytes, body: bytes) -> None:
    for part in (failure, body):
        target.write(len(part).to_bytes(4, "little"))
        target.write(part)
    target.flush()


if __name__ == "__main__":
    sys.exit(main())
