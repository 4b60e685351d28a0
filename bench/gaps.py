"""A part: how long other streams stand still while a large request is taken in.

The engine's own time for a long prompt is left out in two ways. The request is one that the
engine never sees, a prompt that is a little too long: it is received, parsed, rendered,
tokenized and counted, and then refused. Or it is answered, by an engine whose steps take as
long as ever, whatever is in them.
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
from bench.cases import MODEL, WORDS, Case, Dialect
from bench.client import BenchError, Connection, Reply
from bench.parts import Setup
from bench.programs import settle
from bench.scripted import start_scripted
from bench.servers import PACED_ENGINE, Server, running
from bench.values import Found, Value

PROMPT, BODY = "gap by a 32k-token prompt", "gap by a 1 MB body"
SCRIPTED = f"{BODY}, scripted engine"
ANSWERED = "gap by an answered 32k-token prompt, paced engine"
STREAMS = 4
SECONDS_PER_TOKEN = 0.002
INTRUDERS, QUICK_INTRUDERS = 8, 2
ANSWER_TOKENS = 16
TOO_MANY_TOKENS = models.LONG_CONTEXT + 1_000  # Refused, once they have been counted.
MANY_TOKENS = models.LONG_CONTEXT - 1_000
PACE = 0.005
"""Seconds of a step of the paced engine."""

BODY_BYTES = 1_000_000
SPAN_SECONDS = 0.03
REST_SECONDS = 0.1
FLOWING = 10
"""Pieces after which a stream is under way."""


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
    """Large requests beside streams, on the tiny model of both servers, on the paced engine
    of both, and on the scripted engine."""

    name = "gaps by large requests"

    def keys(self, setup: Setup) -> list[str]:
        """By kind of large request."""
        return [PROMPT, BODY, ANSWERED, SCRIPTED] if setup.with_vllm else [SCRIPTED]

    async def measure(self, setup: Setup) -> Found:
        """Both servers with vLLM first, then the scripted one."""
        found = Found()
        wanted = [key for key in self.keys(setup) if setup.wants(key)]
        for keys, more in (((PROMPT, BODY), {}), ((ANSWERED,), PACED_ENGINE)):
            asked = [key for key in keys if key in wanted]
            if asked:
                arguments = {**setup.arguments, "max_model_len": models.LONG_CONTEXT, **more}
                with running(models.tiny_long(setup.folder), arguments, setup.folder) as servers:
                    await _rounds(servers, asked, setup, found)
        if SCRIPTED in wanted:
            server = start_scripted(SECONDS_PER_TOKEN, STREAMS, setup.folder)
            try:
                server.wait_ready()
                await _rounds([server], [SCRIPTED], setup, found)
            finally:
                server.stop()
        return found


async def _rounds(
    servers: Sequence[Server], keys: Sequence[str], setup: Setup, found: Found
) -> None:
    words = _words(servers[0]) if {PROMPT, ANSWERED} & {*keys} else 0
    intruders = QUICK_INTRUDERS if setup.quick else INTRUDERS
    for number in range(setup.rounds):
        for key in keys:
            for server in servers if number % 2 == 0 else list(reversed(servers)):
                setup.say(f"round {number + 1}/{setup.rounds}: {key} on {server.name}")
                await settle(servers)
                chance = random.Random(f"{number} {key}")  # noqa: S311  # texts
                bodies = [_large(key, chance, words) for _ in range(intruders)]
                answered = key == ANSWERED
                gaps = await measure_gaps(
                    server, bodies, status=200 if answered else 400, step=PACE if answered else 0.0
                )
                found.values += gaps.values(key, server.name, number)


async def measure_gaps(
    server: Server, bodies: Sequence[bytes], *, status: int, step: float
) -> Gaps:
    """Send these bodies one after the other while some streams run, and see them answered
    with ``status``. For each: the longest gap of any stream that lies in the time the request
    took, and the longest one in a span as long before it. ``step``: see ``Case``."""
    spans: list[tuple[float, float]] = []
    async with _connected(server.port, STREAMS) as watched:
        case = Case("", Dialect.CHAT, STREAMS, STREAMS, MANY_TOKENS, step=step)
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
                reply = await _answer(server.port, body, status)
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


async def _answer(port: int, body: bytes, status: int) -> Reply:
    """Send a large request over a connection of its own, and see its status."""
    async with _connected(port, 1) as (connection,):
        reply = await connection.ask(_post(port, body))
    if reply.status != status:
        raise BenchError(f"status {reply.status}, not {status}: {reply.body[:500]!r}")
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


def _large(key: str, chance: random.Random, words: int) -> bytes:
    """The body of a large request; ``words`` make ``TOO_MANY_TOKENS``. A large body has text
    that no context holds: it is refused as early as a server can tell."""
    if key in (PROMPT, ANSWERED):
        if key == ANSWERED:
            words = words * MANY_TOKENS // TOO_MANY_TOKENS
        text = " ".join(chance.choices(WORDS, k=words))
    else:
        text = "word " * (BODY_BYTES // 5)
    # Not streamed: a stream that takes long to refuse gets its error after status 200.
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": ANSWER_TOKENS,
        "seed": round(PACE * 1e6),  # read by paced_engine
    }
    return msgspec.json.encode(body)


def _words(server: Server) -> int:
    """How many words make ``TOO_MANY_TOKENS``."""
    text = " ".join(WORDS * 20)
    url = f"http://127.0.0.1:{server.port}/tokenize"
    reply = httpx.post(url, json={"model": MODEL, "prompt": text}, timeout=60).raise_for_status()
    return TOO_MANY_TOKENS * len(WORDS) * 20 // len(reply.json()["tokens"])
