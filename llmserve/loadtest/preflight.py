"""What comes before the measurement: the name of the model, calibration, warm-up."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

from llmserve.loadtest.calibrate import Scale, fit
from llmserve.loadtest.connection import Broken
from llmserve.loadtest.exchange import exchange
from llmserve.loadtest.figures import Record
from llmserve.loadtest.plan import LoadTestFailed, Plan
from llmserve.loadtest.prompts import WORDS, Prompt, Prompts, ShareGpt, Synthetic, read_sharegpt
from llmserve.loadtest.seeds import seeded
from llmserve.loadtest.target import Target

_MODELS_SECONDS = 30.0
_MODELS_BYTES = 4 * 1024 * 1024
# Short enough for any context, and far enough apart for a slope.
_WORDS_SENT = (16, 144)
_CHARACTERS_SENT = 1500
# Their prompts have numbers of their own: what is measured finds nothing of them in a cache.
_WARM_UP_INDEX = 2_000_000_000


async def first_model(target: Target) -> str:
    """The name of the first model that a server serves. Raises ``LoadTestFailed``."""
    reply = _Whole()
    try:
        async with asyncio.timeout(_MODELS_SECONDS):
            await target.pool.ask(target.models_request(), reply)
        data = json.loads(reply.body)
    except (OSError, Broken) as error:
        raise LoadTestFailed(f"No server answers at {target.url}: {error}.") from None
    except ValueError:
        data = None
    match data:
        case {"data": [{"id": str(name)}, *_]}:
            return name
        case {"error": {"message": str(said)}}:
            raise LoadTestFailed(f"{target.url} answered {reply.status}: {said}")
    raise LoadTestFailed(f"{target.url} does not say which models it serves; give --model.")


async def source_of_prompts(plan: Plan, target: Target) -> tuple[Prompts, Scale]:
    """The prompts of the plan, their lengths fitted to the tokenizer of this server."""
    workload = plan.workload
    if workload.file is not None:
        pairs = await asyncio.to_thread(read_sharegpt, workload.file)
        text = "\n".join(prompt for prompt, _ in pairs[:1000])[:_CHARACTERS_SENT]
        sizes = (max(len(text) // 10, 1), max(len(text), 2))
        scale = await _measured_scale(plan, target, lambda size: text[:size], sizes)
        return ShareGpt(pairs, workload.answers, scale, plan.seed), scale
    assert workload.answers is not None, "only a file brings lengths of its own"
    scale = await _measured_scale(plan, target, _some_words, _WORDS_SENT)
    return Synthetic(workload, workload.answers, scale, plan.seed), scale


async def warm_up(plan: Plan, target: Target, prompts: Prompts) -> None:
    """Requests that are not measured, at once: connections, caches, compiled paths. Raises
    ``LoadTestFailed`` when none of them is answered."""
    records = [Record(_WARM_UP_INDEX + number, due=0.0) for number in range(plan.warmup)]
    async with asyncio.TaskGroup() as group:
        for each in records:
            group.create_task(exchange(target, prompts.prompt(each.index), each, plan.timeout))
    failed = [each for each in records if each.failure is not None]
    if records and len(failed) == len(records):
        raise LoadTestFailed(_why(target, failed[0]))


async def _measured_scale(
    plan: Plan, target: Target, text: Callable[[int], str], sizes: tuple[int, int]
) -> Scale:
    """Ask for one token each after two texts. Without token counts from the server, one
    word or four characters are taken for one token, and nothing is said of the template."""
    points = []
    for size in sizes:
        record = Record(0, due=0.0)
        await exchange(target, Prompt(text(size), 1), record, plan.timeout)
        if record.failure is not None:
            raise LoadTestFailed(_why(target, record))
        if record.prompt_tokens is None:
            return Scale(1.0 if plan.workload.file is None else 0.25)
        points.append((size, record.prompt_tokens))
    try:
        return fit(points[0], points[1])
    except ValueError as error:
        raise LoadTestFailed(
            f"The prompt token counts of {target.url} cannot be right: {error}."
        ) from None


def _some_words(count: int) -> str:
    return " ".join(seeded(count).choices(WORDS, k=count))


def _why(target: Target, record: Record) -> str:
    return (
        f"{target.url} does not answer the first requests ({record.failure}): "
        f"{record.detail or 'no reason given'}"
    )


class _Whole:
    """Keeps a whole reply."""

    def __init__(self) -> None:
        self.status = 0
        self.body = b""

    def begin(self, status: int, kind: str) -> None:  # noqa: ARG002  # any kind will do
        self.status = status

    def feed(self, now: float, data: bytes) -> None:  # noqa: ARG002
        if len(self.body) < _MODELS_BYTES:
            self.body += data
