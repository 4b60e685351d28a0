"""The load: many keep-alive connections, one request at a time on each.

While the clock runs, a piece of a stream costs a list entry and nothing else; what it says
is read afterwards (``replies``).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import cast

import httptools

from bench.turns import waited_seconds

DEADLINE_SECONDS = 300.0


class BenchError(Exception):
    """The measurement cannot go on, or would not be worth anything."""


@dataclass(slots=True)
class Reply:
    """One response as it came: when it was asked for, pieces of its body, when it ended."""

    begin: float
    status: int = 0
    end: float = 0.0
    pieces: list[tuple[float, bytes]] = field(default_factory=list)

    @property
    def body(self) -> bytes:
        """The whole body."""
        return b"".join(piece for _, piece in self.pieces)


@dataclass(frozen=True, slots=True)
class Load:
    """What one run of requests took, and what came back."""

    replies: tuple[Reply, ...]
    seconds: float
    cpu_seconds: float
    waited_seconds: float
    """How long the client itself stood in line for a core."""


async def drive(
    port: int, payloads: Sequence[bytes], streams: int, cpu_seconds: Callable[[], float]
) -> Load:
    """Send all payloads over ``streams`` connections, each as soon as one is free.

    Clock and ``cpu_seconds`` are read when all connections stand, and after the last reply.
    """
    loop = asyncio.get_running_loop()
    connections: list[Connection] = []
    queue = iter(payloads)
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            for _ in range(min(streams, len(payloads))):
                _, made = await loop.create_connection(Connection, "127.0.0.1", port)
                connections.append(made)
            waited = waited_seconds()
            cpu, begin = cpu_seconds(), time.perf_counter()
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(_work(each, queue)) for each in connections]
            seconds, cpu = time.perf_counter() - begin, cpu_seconds() - cpu
            waited = waited_seconds() - waited
    except TimeoutError as error:
        raise BenchError(f"not answered within {DEADLINE_SECONDS:.0f} s") from error
    except OSError as error:
        raise BenchError(f"cannot connect: {error}") from error
    except ExceptionGroup as errors:
        raise BenchError(str(errors.exceptions[0])) from errors
    finally:
        for each in connections:
            each.close()
    replies = tuple(reply for task in tasks for reply in task.result())
    return Load(replies, seconds, cpu, waited)


async def _work(connection: Connection, queue: Iterator[bytes]) -> list[Reply]:
    return [await connection.ask(payload) for payload in queue]


class Connection(asyncio.Protocol):
    """One connection. Its callbacks are asyncio's and httptools'. ``reply`` is the one that
    was asked for last, also while it is still coming."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._done: asyncio.Future[Reply] | None = None
        self._now = 0.0
        self._made = 0.0
        self._lost = "it is closing"
        self.reply = Reply(0.0)

    async def ask(self, payload: bytes) -> Reply:
        """Send one request and wait for the whole response."""
        if self._transport is None or self._transport.is_closing():
            age = time.perf_counter() - self._made
            raise BenchError(f"a connection was closed within {age:.3f} s, unused: {self._lost}")
        self._parser = httptools.HttpResponseParser(self)
        self._done = asyncio.get_running_loop().create_future()
        self.reply = Reply(time.perf_counter())
        self._transport.write(payload)
        return await self._done

    def close(self) -> None:
        """Close without waiting."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self._made = time.perf_counter()

    def data_received(self, data: bytes) -> None:
        self._now = time.perf_counter()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(f"not HTTP: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = f"{time.perf_counter() - self._made:.3f} s after it was made ({exc})"
        self._fail(f"the server cut a response: {exc or 'end of file'}")

    def on_body(self, body: bytes) -> None:
        self.reply.pieces.append((self._now, body))

    def on_message_complete(self) -> None:
        self.reply.status = self._parser.get_status_code()
        self.reply.end = self._now
        if self._done is not None and not self._done.done():
            self._done.set_result(self.reply)

    def _fail(self, message: str) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(BenchError(message))
