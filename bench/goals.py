"""The goals of the project for its speed, in one table, and whether they are met."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median, quantiles

from bench.stats import paired_ratio
from bench.values import OURS, THEIRS, Value, rounds

MOST_TOLERANCE = 0.1
IDLE_STREAMS = 10_000


@dataclass(frozen=True, slots=True)
class Goal:
    """One row of the table.

    ``checks`` names the measures that are judged; what stands after a ``÷`` is vLLM's
    measure, where it is not the same one. Judged is llmserve ÷ vllm in each round when
    ``ratio`` is true, otherwise llmserve's own figure in ``unit``. The median of the rounds
    must be ``bound`` or less, or ``bound`` or more with ``at_least``. With ``tolerant`` it
    may miss by the noise (``tolerance``).
    """

    name: str
    how: str
    bound: float
    checks: tuple[str, ...]
    ratio: bool = True
    unit: str = "×"
    at_least: bool = False
    tolerant: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """A goal and one of its checks. ``middle`` is ``None`` when it was not measured."""

    goal: Goal
    check: str
    middle: float | None = None
    least: float = 0.0
    greatest: float = 0.0
    tolerance: float = 0.0

    @property
    def met(self) -> bool:
        """Whether it was measured, and the bound is kept."""
        if self.middle is None:
            return False
        if self.goal.at_least:
            return self.middle + self.tolerance >= self.goal.bound
        return self.middle - self.tolerance <= self.goal.bound

    @property
    def word(self) -> str:
        """The verdict in a word or two."""
        if self.middle is None:
            return "not measured"
        return "met" if self.met else "MISSED"

    @property
    def line(self) -> str:
        """The whole verdict on one line, for a terminal."""
        found = "" if self.middle is None else f": {self.middle:,.2f} {self.goal.unit}"
        return f"{self.goal.name}: {self.check}{found}, {bound(self.goal)}: {self.word}"


_CPU = (
    "CPU time of the process that answers HTTP (user and system) ÷ tokens delivered; engine "
    "processes and client do not count"
)
_LEVELS = (1, 8, 32, 64)

GOALS = (
    Goal(
        "CPU per streamed chat token",
        _CPU,
        0.5,
        tuple(f"chat stream c={level}: CPU µs per token" for level in (16, 64)),
    ),
    Goal(
        "CPU per streamed token, completions and native",
        f"{_CPU}. vLLM has no native route: it is compared with vLLM's chat stream of the same "
        "text",
        0.5,
        (
            *(f"completions stream c={level}: CPU µs per token" for level in (16, 64)),
            *(
                f"native stream c={n}: CPU µs per token ÷ chat stream c={n}: CPU µs per token"
                for n in (16, 64)
            ),
        ),
    ),
    Goal(
        "CPU per request that is not streamed, 1 token",
        "as above ÷ requests",
        0.6,
        tuple(f"{name} one token c=16: CPU µs per request" for name in ("chat", "completions")),
    ),
    Goal(
        "tokens/s that one front-end process can deliver",
        "derived, not driven: 1 s ÷ CPU per token at 64 streams, what one saturated core would "
        "deliver if the engine were no limit",
        2.0,
        tuple(f"{name} stream c=64: front-end tokens/s" for name in ("chat", "completions")),
        at_least=True,
    ),
    Goal(
        "output tokens/s end to end",
        "all tokens ÷ time from the first request to the last reply; engine core and worker "
        "are the limit here. Never below beyond noise",
        1.0,
        tuple(
            f"{name} c={level}: tokens/s"
            for name in ("chat stream", "demo chat stream")
            for level in _LEVELS
        ),
        at_least=True,
        tolerant=True,
    ),
    Goal(
        "TTFT added to the bare engine, p50",
        "p50 of llmserve's time to first text, at the client − p50 of the bare engine's, timed "
        "inside it; idle, short chat prompt, one request at a time, in turns",
        1.0,
        ("added TTFT p50 ms",),
        ratio=False,
        unit="ms",
    ),
    Goal(
        "TTFT added to the bare engine, p99",
        "the same with p99 − p99",
        3.0,
        ("added TTFT p99 ms",),
        ratio=False,
        unit="ms",
    ),
    Goal(
        "worst gap that a large request inflicts on other streams",
        "longest gap while it is under way − longest gap in a span as long just before; median "
        "over the large requests of a round (see Method)",
        5.0,
        (
            "gap by a 32k-token prompt: added ms",
            "gap by a 1 MB body: added ms",
            "gap by a 1 MB body, scripted engine: added ms",
            "gap by an answered 32k-token prompt, paced engine: added ms",
        ),
        ratio=False,
        unit="ms",
    ),
    Goal(
        "p99 inter-token latency at 64 streams",
        "p99 of the time between two frames with text of a stream. With the tiny model it is the "
        "engine's: a step on two cores takes longer than all that the front end adds. The paced "
        "engine has steps of 10 and 5 ms, as on a GPU",
        0.8,
        (
            "chat stream c=64: ITL p99 ms",
            "paced chat stream 10 ms c=64: ITL p99 ms",
            "paced chat stream 5 ms c=64: ITL p99 ms",
        ),
    ),
    Goal(
        "process start → /livez",
        "from exec to the first 200, the demo model, asked every 2 ms",
        0.5,
        ("start to live s",),
        ratio=False,
        unit="s",
    ),
    Goal(
        "process start → first token",
        "from exec to a whole answer of one token; demo model, eager, warm caches",
        0.75,
        ("start to first token s",),
    ),
    Goal(
        "front-end resident memory",
        "RSS of the process that answers HTTP, after all streams of a round",
        1.0,
        ("resident MiB", "demo resident MiB"),
    ),
    Goal(
        "continuous batching, 64 streams ÷ 1 stream",
        "tokens/s of llmserve with 64 streams ÷ with one, demo model",
        8.0,
        ("demo batching",),
        ratio=False,
        at_least=True,
    ),
    Goal(
        "streams held idle",
        "streams that were open together and got every token on time, scripted engine with "
        "a token now and then",
        IDLE_STREAMS,
        ("idle chat stream: held", "idle native stream: held"),
        ratio=False,
        unit="streams",
        at_least=True,
    ),
    Goal(
        "memory of a stream held idle",
        "growth of the server's RSS ÷ streams, scripted engine in the same process included",
        20.0,
        ("idle chat stream: kB each", "idle native stream: kB each"),
        ratio=False,
        unit="kB",
    ),
    Goal(
        "llmserve bench agrees with a second tool",
        "the greatest difference between its figures and those of vllm bench serve, of a round",
        5.0,
        ("load generator: greatest difference %",),
        ratio=False,
        unit="%",
    ),
)


def judge(values: Sequence[Value], goals: Sequence[Goal] = GOALS) -> list[Verdict]:
    """Every check of every goal, in the order of the table."""
    return [_verdict(values, goal, check) for goal in goals for check in goal.checks]


def tolerance(ratios: Sequence[float]) -> float:
    """What noise may explain: the interquartile range of the rounds. For five rounds that
    is about 2.4 standard errors of their median, so a goal that is just met fails once in a
    hundred runs. Never more than ``MOST_TOLERANCE``: a wild run excuses nothing."""
    if len(ratios) < 2:
        return 0.0
    low, _, high = quantiles(ratios, n=4, method="inclusive")
    return min(high - low, MOST_TOLERANCE)


def bound(goal: Goal) -> str:
    """The bound as it is written, such as ``≤ 0.5 ×``."""
    return f"{'≥' if goal.at_least else '≤'} {goal.bound:,g} {goal.unit}"


def _verdict(values: Sequence[Value], goal: Goal, check: str) -> Verdict:
    measure, _, other = check.partition(" ÷ ")
    found = rounds(values, measure, OURS)
    if goal.ratio:
        theirs = rounds(values, other or measure, THEIRS)
        if paired_ratio(found, theirs) is None:
            return Verdict(goal, check)
        found = [a / b for a, b in zip(found, theirs, strict=True)]
    if not found:
        return Verdict(goal, check)
    spare = tolerance(found) if goal.tolerant else 0.0
    return Verdict(goal, check, median(found), min(found), max(found), spare)
