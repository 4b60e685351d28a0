"""A part: what a server adds to the bare engine's time to first token.

One request at a time, in blocks: llmserve, vLLM's own server, the least server, the bare
engine, in an order that changes from block to block. Prompts and token ids are the same for
all of them but the least server, whose prompts have no template around them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median

import httpx

from bench import models
from bench.bare_engine import TOKENS, BareEngine
from bench.cases import MODEL, Case, Dialect
from bench.client import drive
from bench.least_server import LEAST, start_least
from bench.parts import Setup
from bench.programs import Program, settle
from bench.replies import read
from bench.servers import Server, running
from bench.stats import percentile
from bench.values import BARE, Found, Value, rounds

PROMPTS, QUICK_PROMPTS = 200, 8
BLOCK = 50
"""Prompts that one program answers before the next one has its turn: the speed of a shared
machine changes from minute to minute, and what is looked for is a millisecond."""

PERCENTS = (50, 99)
KEY = "added TTFT"


class Added:
    """Time to first token at the client − the same inside the bare engine."""

    name = "time to first token added to the bare engine"

    def keys(self, setup: Setup) -> list[str]:
        """One thing, and only with vLLM."""
        return [KEY] if setup.with_vllm else []

    async def measure(self, setup: Setup) -> Found:
        """Measure on the tiny model, whose engine is quick."""
        model = models.tiny(setup.folder)
        count = QUICK_PROMPTS if setup.quick else PROMPTS
        case = Case(KEY, Dialect.CHAT, 1, count, TOKENS)
        bare = BareEngine(model, setup.arguments, setup.folder / "bare.log")
        least = start_least(model, setup.arguments, setup.folder)
        try:
            with running(model, setup.arguments, setup.folder) as servers:
                least.wait_ready()
                found = Found()
                everybody = [*servers, least, bare]
                prompts = _token_ids(servers[-1], case)
                for number in range(-1, setup.rounds):
                    setup.say(f"round {number + 1}/{setup.rounds}: {KEY}")
                    times: dict[str, list[float]] = {each.name: [] for each in everybody}
                    for first in range(0, count, BLOCK):
                        numbers = range(first, min(first + BLOCK, count))
                        everybody.reverse()
                        for program in everybody:
                            await settle(everybody)
                            times[program.name] += await _block(program, case, prompts, numbers)
                    if number >= 0:
                        found.values += _values(number, times)
        finally:
            least.stop()
            bare.stop()
        for percent in PERCENTS:
            added = rounds(found.values, f"{KEY} p{percent} ms", LEAST)
            found.notes[f"{LEAST}: {KEY} p{percent} ms"] = round(median(added), 2)
        return found


async def _block(
    program: Program, case: Case, prompts: Sequence[list[int]], numbers: Sequence[int]
) -> list[float]:
    if isinstance(program, BareEngine):
        return program.ask([prompts[number] for number in numbers])
    assert isinstance(program, Server)
    payloads = [case.payload(number, program.port) for number in numbers]
    load = await drive(program.port, payloads, 1, program.cpu_seconds)
    return [read(case, reply).first_text for reply in load.replies]


def _token_ids(server: Server, case: Case) -> list[list[int]]:
    """What the chat template makes of the prompts, by vLLM's own server."""
    url = f"http://127.0.0.1:{server.port}/tokenize"
    found = []
    for number in range(case.requests):
        body = {"model": MODEL, "messages": case.body(number)["messages"]}
        reply = httpx.post(url, json=body).raise_for_status()
        found.append([int(each) for each in reply.json()["tokens"]])
    return found


def _values(number: int, times: dict[str, list[float]]) -> Iterator[Value]:
    """Percentiles, and what each server adds to those of the bare engine. Prompts whose
    answer has no text (half a character) are left out everywhere."""
    silent = {place for each in times.values() for place, first in enumerate(each) if not first}
    kept = {
        name: [first for place, first in enumerate(each) if place not in silent]
        for name, each in times.items()
    }
    for percent in PERCENTS:
        bare = percentile(kept[BARE], percent)
        for name, each in kept.items():
            first = percentile(each, percent)
            yield Value(f"idle TTFT p{percent} ms", name, number, 1e3 * first, 2)
            if name != BARE:
                yield Value(f"{KEY} p{percent} ms", name, number, 1e3 * (first - bare), 2)
