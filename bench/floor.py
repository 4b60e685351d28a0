"""A part: what the least server and the bare engine client cost, beside vLLM's own server.

It judges nothing. Where a goal is missed, this says how much of the cost is the engine's
client, and how much HTTP, which every server in Python around this engine has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from statistics import median

from bench import models
from bench.bare_engine import BareEngine
from bench.cases import Case, Dialect
from bench.least_server import LEAST, start_least
from bench.parts import Setup
from bench.programs import settle
from bench.runner import Sample, run_round, warm_up
from bench.servers import start_theirs
from bench.stats import paired_ratio
from bench.values import BARE, THEIRS, Found

KEY = "least server"
CASES = (
    Case("chat stream", Dialect.CHAT, 64, 128, 96),
    Case("completions stream", Dialect.COMPLETION, 16, 128, 96),
    Case("chat one token", Dialect.CHAT, 16, 640, 1, streaming=False),
    Case("completions one token", Dialect.COMPLETION, 16, 640, 1, streaming=False),
)
CHAT = CASES[0].key
FIRST, PROMPT = 1000, 40
"""Token ids of the bare engine's prompts, and how many: as many as those of the others have."""

Figure = Callable[[Sample], float]


class Floor:
    """CPU per token and per request, and the time between tokens, on the tiny model."""

    name = "what the least server costs"

    def keys(self, setup: Setup) -> list[str]:
        """One thing, and only with vLLM."""
        return [KEY] if setup.with_vllm else []

    async def measure(self, setup: Setup) -> Found:
        """Both servers and the client in turns."""
        model = models.tiny(setup.folder)
        cases = [
            Case(c.name, c.dialect, c.streams, c.streams, 8 if c.streaming else 1, c.streaming)
            if setup.quick
            else c
            for c in CASES
        ]
        with ExitStack() as stack:
            servers = []
            for start in (start_least, start_theirs):
                servers.append(start(model, setup.arguments, setup.folder))
                stack.callback(servers[-1].stop)
            bare = BareEngine(model, setup.arguments, setup.folder / "bare.log")
            stack.callback(bare.stop)
            for server in servers:
                server.wait_ready()
            bare.ask([[FIRST]])
            samples, client = [], []
            await warm_up(servers, cases, setup.say)
            for number in range(setup.rounds):
                samples += await run_round(number, servers, cases, setup.say)
                servers.reverse()
                await settle([*servers, bare])
                client.append(_client_cpu(bare, cases[0]))
        theirs = [s.cpu_us_per_token for s in samples if (s.case, s.server) == (CHAT, THEIRS)]
        notes = {f"{BARE}'s client ÷ vllm, CPU, {CHAT}": _said(client, theirs, "µs")}
        for case in cases:
            cpu = _compared(samples, case, lambda sample: sample.cpu_us_per_token, "µs")
            notes[f"{KEY} ÷ vllm, CPU, {case.key}"] = cpu
            if case.streaming:
                gap = _compared(samples, case, lambda sample: 1e3 * sample.gap_p99, "ms")
                notes[f"{KEY} ÷ vllm, ITL p99, {case.key}"] = gap
        return Found(notes=notes)


def _client_cpu(bare: BareEngine, case: Case) -> float:
    """CPU time in microseconds that the engine's client takes for a token, under the load of
    this case."""
    begin = bare.cpu_seconds()
    numbers = range(case.requests)
    prompts = [list(range(FIRST + number, FIRST + number + PROMPT)) for number in numbers]
    bare.ask(prompts, case.tokens, case.streams)
    return 1e6 * (bare.cpu_seconds() - begin) / (case.requests * case.tokens)


def _compared(samples: Sequence[Sample], case: Case, figure: Figure, unit: str) -> str:
    mine, theirs = (
        [figure(s) for s in samples if (s.case, s.server) == (case.key, server)]
        for server in (LEAST, THEIRS)
    )
    return _said(mine, theirs, unit)


def _said(mine: Sequence[float], theirs: Sequence[float], unit: str) -> str:
    """The ratio with its range, and the median of ``mine``."""
    ratio = paired_ratio(mine, theirs)
    if ratio is None:
        return "not to be seen"
    found = f"{ratio.middle:.2f} ({ratio.least:.2f} … {ratio.greatest:.2f})"
    return f"{found}, {median(mine):.0f} {unit}"
