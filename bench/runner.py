"""Rounds: every case on every server in turn, so that what disturbs one disturbs both."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from bench.cases import Case, Dialect
from bench.client import BenchError, Load, drive
from bench.parts import Say
from bench.programs import settle, tree_cpu_seconds
from bench.replies import Answer, read
from bench.servers import Server
from bench.stats import percentile
from bench.values import OURS

COMPARED_PROMPTS = 4
COMPARED_TOKENS = 48
WARM_UP_REQUESTS = 16
WARM_UP_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Sample:
    """One case on one server in one round."""

    round: int
    case: str
    server: str
    requests: int
    tokens: int
    frames: int
    seconds: float
    cpu_seconds: float
    ttft_p50: float
    latency_p50: float
    gap_p99: float
    resident_bytes: int
    proportional_bytes: int
    others_cpu_seconds: float
    client_waited_seconds: float

    @property
    def cpu_us_per_token(self) -> float:
        """CPU time of the front end for each token delivered."""
        return 1e6 * self.cpu_seconds / self.tokens

    @property
    def tokens_per_second(self) -> float:
        """Of all streams together."""
        return self.tokens / self.seconds


@dataclass(frozen=True, slots=True)
class _Turn:
    """Some requests of a sample."""

    load: Load
    answers: Sequence[Answer]
    others_cpu_seconds: float


async def warm_up(servers: Sequence[Server], cases: Sequence[Case], say: Say) -> None:
    """A short wave of every kind of request, at its greatest level of concurrency."""
    widest: dict[tuple[Dialect, bool], Case] = {}
    for case in sorted(cases, key=lambda case: case.streams):
        widest[case.dialect, case.streaming] = replace(
            case, tokens=min(case.tokens, WARM_UP_TOKENS)
        )
    for case in widest.values():
        for server in _able(servers, case):
            say(f"warm-up: {case.key} on {server.name}")
            # None of the prompts that are measured: the engine would remember them.
            count = min(case.requests, max(WARM_UP_REQUESTS, case.streams))
            await _load(server, case, range(case.requests, case.requests + count))


async def run_round(
    number: int, servers: Sequence[Server], cases: Sequence[Case], say: Say
) -> list[Sample]:
    """Every case on every server, in the order of ``servers``, and back where it takes turns."""
    samples = []
    for case in cases:
        able = _able(servers, case)
        taken: dict[str, list[_Turn]] = {server.name: [] for server in able}
        for turn in range(case.turns):
            for server in able if turn % 2 == 0 else reversed(able):
                say(f"round {number + 1}: {case.key} on {server.name}")
                await settle(servers)
                taken[server.name].append(await _take(turn, server, case, servers))
        samples += [_sample(number, server, case, taken[server.name]) for server in able]
    return samples


async def compare_answers(servers: Sequence[Server], cases: Sequence[Case]) -> int:
    """Ask every server the same greedy questions, one at a time. All must say the same,
    streaming or not, and the native route the same as chat. Returns how many answers were
    compared; raises ``BenchError`` at the first difference."""
    said: dict[tuple[bool, int], tuple[str, int, str]] = {}
    count = 0
    asked = {(case.dialect, case.streaming) for case in cases}
    for dialect, streaming in sorted(asked):
        case = Case("comparison", dialect, 1, COMPARED_PROMPTS, COMPARED_TOKENS, streaming)
        for server in _able(servers, case):
            for number in range(COMPARED_PROMPTS):
                payload = case.payload(number, server.port)
                load = await drive(server.port, [payload], 1, server.cpu_seconds)
                found = read(case, load.replies[0]).said
                expected = said.setdefault((dialect is Dialect.COMPLETION, number), found)
                count += 1
                if found != expected:
                    raise BenchError(
                        f"{server.name} answers {dialect.value} (streaming: {streaming}) with "
                        f"{found}, not with {expected}"
                    )
    return count


async def _take(turn: int, server: Server, case: Case, servers: Sequence[Server]) -> _Turn:
    others = [other for other in servers if other is not server]
    before = tree_cpu_seconds(others)
    each = case.requests // case.turns
    load, answers = await _load(server, case, range(turn * each, (turn + 1) * each))
    return _Turn(load, answers, tree_cpu_seconds(others) - before)


def _sample(number: int, server: Server, case: Case, turns: Sequence[_Turn]) -> Sample:
    answers = [answer for turn in turns for answer in turn.answers]
    return Sample(
        round=number,
        case=case.key,
        server=server.name,
        requests=len(answers),
        tokens=sum(answer.tokens for answer in answers),
        frames=sum(answer.frames for answer in answers),
        seconds=sum(turn.load.seconds for turn in turns),
        cpu_seconds=sum(turn.load.cpu_seconds for turn in turns),
        ttft_p50=percentile([answer.first_text for answer in answers], 50),
        latency_p50=percentile([answer.total for answer in answers], 50),
        gap_p99=percentile([gap for answer in answers for gap in answer.gaps] or [0.0], 99),
        resident_bytes=server.resident_bytes(),
        proportional_bytes=server.proportional_bytes(),
        others_cpu_seconds=sum(turn.others_cpu_seconds for turn in turns),
        client_waited_seconds=sum(turn.load.waited_seconds for turn in turns),
    )


async def _load(server: Server, case: Case, numbers: Iterable[int]) -> tuple[Load, list[Answer]]:
    payloads = [case.payload(number, server.port) for number in numbers]
    load = await drive(server.port, payloads, case.streams, server.cpu_seconds)
    return load, [read(case, reply) for reply in load.replies]


def _able(servers: Sequence[Server], case: Case) -> list[Server]:
    """The servers that have the route of this case."""
    return [server for server in servers if server.name == OURS or not case.ours_only]
