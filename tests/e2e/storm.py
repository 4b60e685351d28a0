"""A client that costs so little that hundreds of them leave the machine to the server.

One connection for each request, no library: the whole reply is read and judged at the
end. What a client cannot explain is a fault of the server.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections import Counter
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Result:
    """What became of one request, as its client saw it. ``kind``: ``complete``,
    ``refused`` (an honest no before any work), ``left`` (the client went away), anything
    else is a lie or a failure."""

    kind: str
    seconds: float
    status: int = 0
    tokens: int = 0
    detail: str = ""


@dataclass(slots=True)
class Client:
    """Where to send requests, and as whom."""

    port: int
    key: str
    results: list[Result] = field(default_factory=list)
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    def start(self, work: Iterable[Coroutine[Any, Any, Any]]) -> None:
        """Do it in the background. ``finish`` waits for it."""
        for coroutine in work:
            task = asyncio.create_task(coroutine)
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    async def finish(self) -> None:
        """Wait for everything that was started."""
        while self.tasks:
            await asyncio.gather(*self.tasks)

    async def ask(self, path: str, body: dict[str, Any], leave_after: int | None = None) -> Result:
        """Send one request and read its reply; leave after so many bytes."""
        start = time.perf_counter()
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(self._request(path, body))
            reply = await _read(reader, leave_after)
        except ConnectionError as error:
            result = Result("broken", time.perf_counter() - start, detail=repr(error))
        else:
            result = judge(reply, left=leave_after is not None)
            result.seconds = time.perf_counter() - start
        finally:
            writer.close()
        self.results.append(result)
        return result

    def _request(self, path: str, body: dict[str, Any]) -> bytes:
        content = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            f"Authorization: Bearer {self.key}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(content)}\r\n\r\n"
        )
        return head.encode() + content


async def _read(reader: asyncio.StreamReader, leave_after: int | None) -> bytes:
    parts, size = [], 0
    while part := await reader.read(65_536):
        parts.append(part)
        size += len(part)
        if leave_after is not None and size >= leave_after:
            break
    return b"".join(parts)


def judge(reply: bytes, *, left: bool) -> Result:
    """What a reply says, taken at its word."""
    head, _, content = reply.partition(b"\r\n\r\n")
    status = int(head.split(b" ", 2)[1]) if head.startswith(b"HTTP/1.1 ") else 0
    if status in (429, 503):
        honest = b"retry-after: " in head.lower() and b'"error"' in content
        return Result("refused" if honest else "lie", 0, status, detail=repr(reply[:200]))
    if status != 200:
        return Result("failed", 0, status, detail=repr(reply[:200]))
    if left:
        return Result("left", 0, status)
    if b"text/event-stream" in head:
        return _judge_stream(_unchunk(content))
    answer = json.loads(content)
    whole = answer["choices"][0]["finish_reason"] in ("stop", "length")
    return Result("complete" if whole else "lie", 0, 200, answer["usage"]["completion_tokens"])


def _judge_stream(text: str) -> Result:
    frames = [line[6:] for line in text.split("\n") if line.startswith("data: ")]
    if not frames or frames[-1] != "[DONE]":
        return Result("cut", 0, 200, detail=text[-200:])
    documents = [json.loads(frame) for frame in frames[:-1]]
    if any("error" in document for document in documents):
        return Result("lie", 0, 200, detail=text[-200:])
    return Result("complete", 0, 200, documents[-1]["usage"]["completion_tokens"])


def _unchunk(content: bytes) -> str:
    parts, rest = [], content
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        parts.append(rest[:length])
        rest = rest[length + 2 :]
    return b"".join(parts).decode()


async def closed_loop(
    client: Client, requests: list[tuple[str, dict[str, Any]]], workers: int, seconds: float
) -> None:
    """So many clients, each asking again as soon as it has its answer. Ends at the end of
    the time; what is under way then goes on beside whatever follows."""
    until = time.perf_counter() + seconds
    turns = itertools.cycle(requests)

    async def work() -> None:
        while time.perf_counter() < until:
            result = await client.ask(*next(turns))
            if result.kind == "refused":
                await asyncio.sleep(1)  # As a client does that reads Retry-After.

    client.start(work() for _ in range(workers))
    await asyncio.sleep(seconds)


async def storm(
    client: Client, requests: list[tuple[str, dict[str, Any]]], rate: float, seconds: float
) -> None:
    """Requests at random times, ``rate`` a second on average, whatever becomes of them;
    one in seven streams is left in the middle of its answer. Ends as ``closed_loop``."""
    chance = random.Random(7)  # noqa: S311  # a schedule
    until, due = time.perf_counter() + seconds, time.perf_counter()
    turns = itertools.cycle(requests)
    while (due := due + chance.expovariate(rate)) < until:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        path, body = next(turns)
        leaves = body.get("stream") and not chance.randrange(7)
        client.start([client.ask(path, body, chance.randrange(500, 6_000) if leaves else None)])


def kinds(results: list[Result]) -> Counter[str]:
    """How often each kind occurred."""
    return Counter(result.kind for result in results)
