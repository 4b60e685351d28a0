"""A part: many streams held open at once, with a token now and then (scripted engine)."""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Sequence

from bench.cases import Case, Dialect
from bench.client import BenchError, Connection
from bench.goals import IDLE_STREAMS
from bench.parts import Setup
from bench.scripted import start_scripted
from bench.servers import Server
from bench.values import Found, Value

QUICK_STREAMS = 100
TOKENS_SEEN = 2
OPENED_AT_ONCE = 100
STREAMS_PER_ADDRESS = 5_000  # a source address has some 28,000 ports
WARM_UP_STREAMS = 50
PATIENCE = 3.0
POLL_SECONDS = 0.05
KINDS = {"idle chat stream": Dialect.CHAT, "idle native stream": Dialect.NATIVE}


class Idle:
    """Opens the streams, waits until each has had ``TOKENS_SEEN`` tokens, and looks at the
    server's memory meanwhile."""

    name = "idle streams"

    def keys(self, setup: Setup) -> list[str]:  # noqa: ARG002  # as every part
        """A kind of stream each; vLLM is not needed."""
        return list(KINDS)

    async def measure(self, setup: Setup) -> Found:
        """One round of each: memory is not noisy."""
        streams = QUICK_STREAMS if setup.quick else IDLE_STREAMS
        seconds = 0.5 if setup.quick else 15.0
        _raise_file_limit(streams + 500)
        found = Found()
        for key, dialect in KINDS.items():
            if not setup.wants(key):
                continue
            setup.say(f"{key}: {streams} at once, a token every {seconds:g} s")
            server = start_scripted(seconds, streams, setup.folder)
            try:
                server.wait_ready()
                case = Case(key, dialect, streams, streams, 1000)
                held, each = await hold(server, case, seconds)
            finally:
                server.stop()
            found.values += [
                Value(f"{key}: held", server.name, 0, held, 0),
                Value(f"{key}: kB each", server.name, 0, each / 1000, 1),
            ]
        return found


async def hold(server: Server, case: Case, seconds_per_token: float) -> tuple[int, float]:
    """How many streams had their tokens, none late, and the bytes that the server grew by
    for each."""
    payload = case.payload(0, server.port)
    await _close(await _open(server.port, payload, WARM_UP_STREAMS))
    before = server.resident_bytes()
    asking = await _open(server.port, payload, case.streams)
    try:
        deadline = time.monotonic() + PATIENCE * (1 + TOKENS_SEEN * seconds_per_token)
        while time.monotonic() < deadline:
            if all(_has_tokens(connection) for connection, _ in asking):
                break
            await asyncio.sleep(POLL_SECONDS + seconds_per_token / 20)
        held = sum(_has_tokens(connection) and not task.done() for connection, task in asking)
        after = server.resident_bytes()
    finally:
        await _close(asking)
    return held, (after - before) / case.streams


Asking = list[tuple[Connection, asyncio.Task[object]]]


async def _open(port: int, payload: bytes, streams: int) -> Asking:
    """Open so many streams, some at a time: the backlog of a socket is finite."""
    loop = asyncio.get_running_loop()
    asking: Asking = []
    for first in range(0, streams, OPENED_AT_ONCE):
        numbers = range(first, min(first + OPENED_AT_ONCE, streams))
        addresses = [(f"127.0.0.{2 + number // STREAMS_PER_ADDRESS}", 0) for number in numbers]
        try:
            made = await asyncio.gather(
                *(
                    loop.create_connection(Connection, "127.0.0.1", port, local_addr=address)
                    for address in addresses
                )
            )
        except OSError as error:
            raise BenchError(f"connection {len(asking)} of {streams}: {error}") from error
        asking += [(each, loop.create_task(each.ask(payload))) for _, each in made]
        await asyncio.sleep(0)
    return asking


async def _close(asking: Asking) -> None:
    for connection, task in asking:
        task.cancel()
        connection.close()
    await asyncio.wait([task for _, task in asking])
    for _, task in asking:
        if not task.cancelled():
            task.exception()  # it was seen: nobody has to be told
    await asyncio.sleep(0.5)


def _has_tokens(connection: Connection) -> bool:
    """Whether enough frames with text have come."""
    marks: Sequence[bytes] = (b'"content":', b"event: token")
    body = connection.reply.body
    # The chunk that opens a chat stream has empty content.
    return sum(body.count(mark) for mark in marks) > TOKENS_SEEN


def _raise_file_limit(files: int) -> None:
    """For this process and the servers it starts."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < files:
        raise BenchError(f"{files} open files are needed, and the hard limit is {most}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(files, 1024), most))
