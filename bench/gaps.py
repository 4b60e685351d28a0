"""A part: how long other streams stand still while a large request is taken in.

The request is one that the engine never sees: a prompt that is a little too long. So it is
received, parsed, rendered, tokenized and counted, and then refused; the engine's own time for
a long prompt is left out.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

import httpx
import msgspec

from bench import models
from bench.cases import MODEL, Case, Dialect
from bench.client import BenchError, Connection, Reply
from bench.parts import Setup
from bench.programs import settle
from bench.scripted import start_scripted
from bench.servers import Server, running
from bench.values import Found, Value

PROMPT, BODY = "gap by a 32k-token prompt", "gap by a 1 MB body"
SCRIPTED = f"{BODY}, scripted engine"
STREAMS = 4
SECONDS_PER_TOKEN = 0.002
INTRUDERS, QUICK_INTRUDERS = 8, 2
ANSWER_TOKENS = 16
PROMPT_TOKENS = models.LONG_CONTEXT + 1_000  # Refused, once it has been tokenized.
BODY_BYTES = 1_000_000
SPAN_SECONDS = 0.03
REST_SECONDS = 0.1
FLOWING = 10
"""Pieces after which a stream is under way."""
WORDS = ("the", "sea", "stone", "lamp", "garden", "window", "table", "morning", "letter")


@dataclass(frozen=True, slots=True)
class Gaps:
    """The longest gaps of a round in milliseconds, one for each large request."""

    before: list[float]
    during: list[float]

    def values(self, key: str, server: str, number: int) -> Iterable[Value]:
        """Medians of a round, and what the large requests added to them."""
        before, during = median(self.before), median(self.during)
        yield Value(f"{key}: before ms", server, number, before, 2)
        yield Value(f"{key}: during ms", server, number, during, 2)
        yield Value(f"{key}: worst before ms", server, number, max(self.before), 2)
        yield Value(f"{key}: worst during ms", server, number, max(self.during), 2)
        yield Value(f"{key}: added ms", server, number, during - before, 2)


class LongPrompts:
    """Large requests beside streams, on the tiny model of both servers and on the scripted
    engine."""

    name = "gaps by large requests"

    def keys(self, setup: Setup) -> list[str]:
        """By kind of large request."""
        return [PROMPT, BODY, SCRIPTED] if setup.with_vllm else [SCRIPTED]

    async def measure(self, setup: Setup) -> Found:
        """Both servers with vLLM first, then the scripted one."""
        found = Found()
        wanted = {key for key in self.keys(setup) if setup.wants(key)}
        if wanted - {SCRIPTED}:
            arguments = dict(setup.arguments) | {"max_model_len": models.LONG_CONTEXT}
            with running(models.tiny_long(setup.folder), arguments, setup.folder) as servers:
                await _rounds(servers, sorted(wanted - {SCRIPTED}), STREAMS, setup, found)
        if SCRIPTED in wanted:
            server = start_scripted(SECONDS_PER_TOKEN, STREAMS, setup.folder)
            try:
                server.wait_ready()
                await _rounds([server], [SCRIPTED], STREAMS, setup, found)
            finally:
                server.stop()
        return found


async def _rounds(
    servers: Sequence[Server], keys: Sequence[str], streams: int, setup: Setup, found: Found
) -> None:
    words = {server.name: _words(server) for server in servers} if PROMPT in keys else {}
    intruders = QUICK_INTRUDERS if setup.quick else INTRUDERS
    for number in range(setup.rounds):
        for key in keys:
            for server in servers if number % 2 == 0 else list(reversed(servers)):
                setup.say(f"round {number + 1}/{setup.rounds}: {key} on {server.name}")
                await settle(servers)
                chance = random.Random(f"{number} {key}")  # noqa: S311  # texts
                bodies = [
                    _long_prompt(chance, words[server.name]) if key == PROMPT else _large_body()
                    for _ in range(intruders)
                ]
                gaps = await measure_gaps(server, bodies, streams)
                found.values += gaps.values(key, server.name, number)


async def measure_gaps(server: Server, bodies: Sequence[bytes], streams: int) -> Gaps:
    """Send these bodies one after the other while ``streams`` streams run. For each: the
    longest gap of any stream that lies in the time the request took, and the longest one in
    a span as long before it."""
    spans: list[tuple[float, float]] = []
    async with _connected(server.port, streams) as watched:
        case = Case("", Dialect.CHAT, streams, streams, models.LONG_CONTEXT - 1_000)
        tasks = [
            asyncio.ensure_future(each.ask(case.payload(number, server.port)))
            for number, each in enumerate(watched)
        ]
        try:
            while not all(len(each.reply.pieces) > FLOWING for each in watched):
                _check_running(tasks)
                await asyncio.sleep(REST_SECONDS)
            rest = 3 * REST_SECONDS
            for body in bodies:
                await asyncio.sleep(rest)
                reply = await _refused(server.port, body)
                spans.append((reply.begin, max(reply.end, reply.begin + SPAN_SECONDS)))
                rest = REST_SECONDS + 2 * (spans[-1][1] - spans[-1][0])
            await asyncio.sleep(REST_SECONDS)
            _check_running(tasks)
            replies = [each.reply for each in watched]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
    during = [longest_gap(replies, begin, end) for begin, end in spans]
    before = [longest_gap(replies, 2 * begin - end, begin) for begin, end in spans]
    return Gaps([1e3 * gap for gap in before], [1e3 * gap for gap in during])


def longest_gap(replies: Sequence[Reply], begin: float, end: float) -> float:
    """The longest time without a piece of some stream that touches this span, in seconds."""
    return max(
        after - before
        for reply in replies
        for (before, _), (after, _) in pairwise(reply.pieces)
        if after > begin and before < end
    )


def _check_running(tasks: Iterable[asyncio.Future[Reply]]) -> None:
    for task in tasks:
        if task.done():
            raise BenchError(f"a stream has ended too early: {task.result().body[-500:]!r}")


async def _refused(port: int, body: bytes) -> Reply:
    """Send a large request over a connection of its own, and see it refused."""
    async with _connected(port, 1) as (connection,):
        reply = await connection.ask(_post(port, body))
    if reply.status != 400:
        raise BenchError(f"status {reply.status}, not 400: {reply.body[:500]!r}")
    return reply


@asynccontextmanager
async def _connected(port: int, count: int) -> AsyncIterator[list[Connection]]:
    loop = asyncio.get_running_loop()
    made: list[Connection] = []
    try:
        for _ in range(count):
            _, each = await loop.create_connection(Connection, "127.0.0.1", port)
            made.append(each)
        yield made
    finally:
        for each in made:
            each.close()
        await asyncio.sleep(REST_SECONDS)  # it is the loop that closes them


def _post(port: int, content: bytes) -> bytes:
    head = (
        f"POST {Dialect.CHAT} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


def _chat(text: str) -> bytes:
    """Not streamed: a stream that takes long to refuse gets its error after status 200."""
    messages = [{"role": "user", "content": text}]
    return msgspec.json.encode({"model": MODEL, "messages": messages, "max_tokens": ANSWER_TOKENS})


def _long_prompt(chance: random.Random, words: int) -> bytes:
    return _chat(" ".join(chance.choices(WORDS, k=words)))


def _large_body() -> bytes:
    """Text that no context holds: it is refused as early as a server can tell."""
    return _chat("word " * (BODY_BYTES // 5))


def _words(server: Server) -> int:
    """How many words make ``PROMPT_TOKENS`` tokens."""
    text = " ".join(WORDS * 20)
    url = f"http://127.0.0.1:{server.port}/tokenize"
    reply = httpx.post(url, json={"model": MODEL, "prompt": text}, timeout=60).raise_for_status()
    return PROMPT_TOKENS * len(WORDS) * 20 // len(reply.json()["tokens"])
