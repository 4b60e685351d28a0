"""The worker process: bounded, and replaceable."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from llmserve.catalog import reader as reading
from llmserve.catalog.reader import Reader
from llmserve.catalog.worker import MEMORY_BYTES
from llmserve.errors import Overloaded
from llmserve.modelfile import ModelFileError
from tests.unit.modelfile.model_files import llama


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(llama().build())
    return path


def run(body: Callable[[Reader], Awaitable[None]], **options: float) -> None:
    async def main() -> None:
        reader = Reader(**options)
        try:
            await body(reader)
        finally:
            await reader.aclose()
        assert reader.pid is None

    asyncio.run(main())


def ask(reader: Reader, path: Path, question: str = "summary") -> Awaitable[bytes]:
    return reader.ask(question, {}, name=path.name, path=str(path), root=str(path.parent))


def test_answers_and_errors(model: Path) -> None:
    async def body(reader: Reader) -> None:
        assert json.loads(await ask(reader, model))["name"] == "Tiny"
        first = reader.pid
        await asyncio.to_thread(model.write_bytes, b"no model")
        with pytest.raises(ModelFileError, match="no model file") as caught:
            await ask(reader, model)
        assert (caught.value.code, caught.value.status) == ("unknown_model_format", 422)
        assert reader.pid == first

    run(body)


def test_its_memory_is_bounded_and_its_priority_low(model: Path) -> None:
    async def body(reader: Reader) -> None:
        await ask(reader, model)
        assert reader.pid is not None
        process = psutil.Process(reader.pid)
        assert process.rlimit(psutil.RLIMIT_AS)[0] == MEMORY_BYTES
        assert process.nice() > psutil.Process().nice()
        assert process.memory_info().rss < 120_000_000

    run(body)


@pytest.mark.parametrize(
    ("number", "reason"), [(signal.SIGBUS, "cut short"), (signal.SIGKILL, "ended")]
)
def test_a_worker_that_dies_takes_nothing_with_it(
    model: Path, number: signal.Signals, reason: str
) -> None:
    async def body(reader: Reader) -> None:
        await ask(reader, model)
        assert reader.pid is not None
        os.kill(reader.pid, signal.SIGSTOP)
        waiting = asyncio.ensure_future(ask(reader, model))
        await asyncio.sleep(0.1)
        os.kill(reader.pid, number)
        os.kill(reader.pid, signal.SIGCONT)
        with pytest.raises(ModelFileError, match=reason):
            await waiting
        assert await ask(reader, model)

    run(body)


def test_a_worker_that_hangs_is_killed(model: Path) -> None:
    async def body(reader: Reader) -> None:
        await ask(reader, model)
        hung = reader.pid
        assert hung is not None
        os.kill(hung, signal.SIGSTOP)
        start = time.monotonic()
        with pytest.raises(ModelFileError, match="longer than 3 seconds"):
            await ask(reader, model)
        assert time.monotonic() - start < 10
        assert not psutil.pid_exists(hung)
        assert await ask(reader, model)

    run(body, seconds=3)


def test_only_so_many_wait(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MOST_WAITING", 3)

    async def body(reader: Reader) -> None:
        found: list[Any] = await asyncio.gather(
            *(ask(reader, model) for _ in range(5)), return_exceptions=True
        )
        assert [isinstance(each, bytes) for each in found] == [True] * 3 + [False] * 2
        assert all(isinstance(each, Overloaded) for each in found[3:])

    run(body)


def test_it_ends_with_the_server(model: Path) -> None:
    """The end of its input ends it, however the server ended."""

    async def body(reader: Reader) -> None:
        await ask(reader, model)
        process = reader._process
        assert process is not None
        assert process.stdin is not None
        process.stdin.close()
        assert await asyncio.to_thread(process.wait, 10) == 0

    run(body)
