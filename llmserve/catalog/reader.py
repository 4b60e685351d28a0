"""The server's end of the worker process: started when first needed, replaced when it
dies, killed when it takes too long."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec

from llmserve.errors import Overloaded
from llmserve.modelfile import ModelFileError, Unreadable

SECONDS = 20.0
MOST_WAITING = 64
_CLOSE_SECONDS = 5.0


class Reader:
    """Asks one question at a time. Everything that blocks runs in a thread of its own,
    which spends its time in system calls."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="catalog")
        self._waiting = 0

    @property
    def pid(self) -> int | None:
        """Of the worker, while there is one."""
        return self._process.pid if self._process is not None else None

    async def ask(
        self, question: str, args: dict[str, Any], *, name: str = "", path: str = "", root: str = ""
    ) -> bytes:
        """The answer as JSON. ``name`` is what error messages call the model. Raises
        ``ModelFileError`` and ``Overloaded``."""
        if self._waiting >= MOST_WAITING:
            raise Overloaded("Too many questions about model files wait for an answer.")
        self._waiting += 1
        message = {"question": question, "args": args, "name": name, "path": path, "root": root}
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._thread, self._ask, message)
        finally:
            self._waiting -= 1

    async def aclose(self) -> None:
        """End the worker."""
        if self._process is not None:
            self._process.kill()
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._forget()

    def _ask(self, message: dict[str, Any]) -> bytes:
        process = self._running()
        data = msgspec.json.encode(message)
        deadline = time.monotonic() + self._seconds
        try:
            assert process.stdin is not None
            process.stdin.write(len(data).to_bytes(4, "little") + data)
            process.stdin.flush()
            failure, body = (_read_part(process, deadline) for _ in range(2))
        except (OSError, EOFError, TimeoutError) as error:
            raise self._broken(error, message["name"] or "the model") from error
        if failure:
            raise _raised(msgspec.json.decode(failure))
        return body

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._forget()
        # -P: modules that happen to lie in the current folder are not picked up.
        command = [sys.executable, "-P", "-m", "llmserve.catalog.worker"]
        self._process = subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        return self._process

    def _broken(self, error: Exception, name: str) -> ModelFileError:
        """What to say when no answer came; the worker is gone after that."""
        code = self._forget()
        if isinstance(error, TimeoutError):
            reason = f"describing it took longer than {self._seconds:g} seconds"
        elif code == -signal.SIGBUS:
            reason = "the file was cut short while it was being read"
        else:
            reason = "the process that read it ended"
        return Unreadable(f"{name} cannot be described: {reason}.", file=name)

    def _forget(self) -> int | None:
        """Kill the worker, and tell how it ended."""
        process, self._process = self._process, None
        if process is None:
            return None
        try:
            # One that is dying by itself is given the time to tell why.
            process.wait(0.05)
        except subprocess.TimeoutExpired:
            process.kill()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:
                    continue
        return process.wait(_CLOSE_SECONDS)


def _read_part(process: subprocess.Popen[bytes], deadline: float) -> bytes:
    size = int.from_bytes(_read(process, 4, deadline), "little")
    return _read(process, size, deadline)


def _read(process: subprocess.Popen[bytes], size: int, deadline: float) -> bytes:
    """Exactly so many bytes. Raises ``EOFError`` and ``TimeoutError``."""
    assert process.stdout is not None
    descriptor = process.stdout.fileno()
    ready = select.poll()
    ready.register(descriptor, select.POLLIN)
    parts = []
    while size:
        left = deadline - time.monotonic()
        if left <= 0 or not ready.poll(left * 1000):
            raise TimeoutError
        part = os.read(descriptor, min(size, 1 << 18))
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _raised(failure: dict[str, Any]) -> ModelFileError:
    error = ModelFileError(failure["message"], file=failure["file"])
    error.code = failure["code"]
    return error
