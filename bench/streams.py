"""A part: streams and short requests on both servers, at several levels of concurrency.

Gives CPU per token, tokens/s, times to first token and between tokens, memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import models
from bench.cases import Case, demo_cases, paced_cases, prompt_cases, tiny_cases
from bench.parts import Setup
from bench.runner import Sample, compare_answers, run_round, warm_up
from bench.servers import PACED_ENGINE, running
from bench.values import OURS, THEIRS, Found, Value

TICK = 0.01
"""Seconds of CPU time: less cannot be seen."""


@dataclass(frozen=True, slots=True)
class Measure:
    """One figure of a sample: what it is called, how it is shown, where it comes from."""

    name: str
    digits: int
    of: Callable[[Sample], float]


STREAM = (
    Measure("CPU µs per token", 1, lambda sample: sample.cpu_us_per_token),
    Measure("front-end tokens/s", 0, lambda sample: sample.tokens / max(sample.cpu_seconds, TICK)),
    Measure("tokens/s", 0, lambda sample: sample.tokens_per_second),
    Measure("TTFT p50 ms", 1, lambda sample: 1e3 * sample.ttft_p50),
    Measure("ITL p99 ms", 1, lambda sample: 1e3 * sample.gap_p99),
    Measure("frames per token", 2, lambda sample: sample.frames / sample.tokens),
)
WHOLE = (
    Measure("CPU µs per request", 0, lambda sample: sample.cpu_us_per_token),
    Measure("requests/s", 0, lambda sample: sample.tokens_per_second),
    Measure("latency p50 ms", 1, lambda sample: 1e3 * sample.latency_p50),
)
"""Cases without streaming ask for one token, so a token is a request."""


@dataclass(frozen=True, slots=True)
class Streams:
    """``prefix`` begins the names of measures that belong to no case; ``arguments``: more
    of them for the engine of both servers."""

    name: str
    prefix: str
    model: Callable[[Path], Path]
    cases: Callable[[bool], list[Case]]
    on_script: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def keys(self, setup: Setup) -> list[str]:
        """The cases; none on the scripted engine, where the model is the point."""
        if not (setup.with_vllm or self.on_script):
            return []
        return [case.key for case in self.cases(setup.quick)]

    async def measure(self, setup: Setup) -> Found:
        """Compare what both servers say, and put them under load in turns. A process has a
        speed of its own (decision 0019), so each round starts new ones."""
        asked = [case for case in self.cases(setup.quick) if setup.wants(case.key)]
        model = self.model(setup.folder) if setup.with_vllm else None
        arguments = {**setup.arguments, **self.arguments}
        equal = 0
        samples: list[Sample] = []
        for number in range(setup.rounds):
            swapped = number % 2 == 1
            with running(model, arguments, setup.folder, swapped=swapped) as servers:
                equal = equal or await compare_answers(servers, asked)
                await warm_up(servers, asked, setup.say)
                samples += await run_round(number, servers, asked, setup.say)
        notes = {
            "equal answers": equal,
            "share of a core used by the waiting server": waiting_share(samples),
            "frames per token": frames_per_token(samples),
            "greatest share of a sample that the client waited for a core": max(
                each.client_waited_seconds / each.seconds for each in samples
            ),
        }
        values = [*values_of(samples, asked), *_memory(samples, self.prefix)]
        values += _batching(samples, self.prefix)
        return Found(values, {f"{self.name}: {name}": note for name, note in notes.items()})


TINY = Streams("tiny model", "", models.tiny, lambda quick: tiny_cases(quick=quick), on_script=True)
DEMO = Streams(
    "demo model",
    "demo ",
    lambda _: models.demo(),
    lambda quick: demo_cases(quick=quick),
)
PACED = Streams(
    "paced engine",
    "paced ",
    models.tiny,
    lambda quick: paced_cases(quick=quick),
    arguments=PACED_ENGINE,
)
PROMPTS = Streams(
    "long prompts",
    "long prompts ",
    models.tiny_long,
    lambda quick: prompt_cases(quick=quick),
    arguments={**PACED_ENGINE, "max_model_len": models.LONG_CONTEXT},
)


def values_of(samples: Sequence[Sample], cases: Sequence[Case]) -> Iterator[Value]:
    """All figures of all samples, in the order of the cases."""
    for case in cases:
        for measure in STREAM if case.streaming else WHOLE:
            name = f"{case.key}: {measure.name}"
            for each in samples:
                if each.case == case.key:
                    yield Value(name, each.server, each.round, measure.of(each), measure.digits)


def _memory(samples: Sequence[Sample], prefix: str) -> Iterator[Value]:
    """What each front end held after the last sample of its round."""
    for each in {(each.server, each.round): each for each in samples}.values():
        for name, size in (
            ("resident MiB", each.resident_bytes),
            ("proportional MiB", each.proportional_bytes),
        ):
            yield Value(prefix + name, each.server, each.round, size / 2**20, 0)


def _batching(samples: Sequence[Sample], prefix: str) -> Iterator[Value]:
    """Tokens/s with 64 streams ÷ with one, for each server and round."""
    speed = {(each.case, each.server, each.round): each.tokens_per_second for each in samples}
    for (case, server, number), alone in speed.items():
        many = speed.get((f"{prefix}chat stream c=64", server, number))
        if case == f"{prefix}chat stream c=1" and many is not None:
            yield Value(f"{prefix}batching", server, number, many / alone, 2)


def frames_per_token(samples: Sequence[Sample]) -> dict[str, float]:
    """How many frames with text a token made, by server, over the routes that both have.
    A server that is behind sends fewer and larger frames, which is cheaper: figures are
    comparable only while these are about the same."""
    theirs = {sample.case for sample in samples if sample.server == THEIRS}
    shared = [s for s in samples if s.requests != s.tokens and (not theirs or s.case in theirs)]
    found = {}
    for server in (OURS, THEIRS):
        mine = [sample for sample in shared if sample.server == server]
        if mine:
            found[server] = sum(s.frames for s in mine) / sum(s.tokens for s in mine)
    return found


def waiting_share(samples: Sequence[Sample]) -> float:
    """How much of a core the servers used that were not asked, all samples together."""
    return sum(s.others_cpu_seconds for s in samples) / sum(s.seconds for s in samples)
