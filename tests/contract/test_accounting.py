"""The sum of all meters equals the engine's own counters, whatever became of the requests."""

from __future__ import annotations

import asyncio
import contextlib
import random
from contextlib import aclosing

import prometheus_client
import pytest
from driving import PROMPT, ask, call, chat, idle, open_stream

from llmserve.engine.fake import FakeEngine
from llmserve.engine.protocol import Engine
from llmserve.errors import LlmserveError
from llmserve.types import Constraint, Meter, Operation

pytestmark = pytest.mark.anyio

COUNTERS = ("vllm:prompt_tokens_total", "vllm:generation_tokens_total")


def counters() -> tuple[int, int]:
    """Prompt and completion tokens by vLLM's own count."""
    totals = dict.fromkeys(COUNTERS, 0.0)
    for family in prometheus_client.REGISTRY.collect():
        for sample in family.samples:
            if sample.name in totals:
                totals[sample.name] += sample.value
    return int(totals[COUNTERS[0]]), int(totals[COUNTERS[1]])


async def native(engine: Engine, meter: Meter, chance: random.Random) -> None:
    """A stream, closed after a random number of chunks; some have a bad grammar."""
    bad = Constraint(regex="(") if chance.random() < 0.1 else None
    request = ask(
        PROMPT * chance.randint(1, 12),
        max_tokens=chance.randint(1, 120),
        ignore_eos=chance.random() < 0.7,
        stop=("e",) if chance.random() < 0.2 else (),
        constraint=bad,
    )
    left = chance.randint(0, 150)
    async with aclosing(engine.generate(request, meter)) as chunks:
        async for _ in chunks:
            left -= 1
            if left <= 0:
                return
            if chance.random() < 0.1:
                await asyncio.sleep(chance.random() * 0.05)


async def streamed(engine: Engine, meter: Meter, chance: random.Random) -> None:
    body = chat(max_tokens=chance.randint(1, 120), ignore_eos=True)
    left = chance.randint(0, 100)
    async with aclosing(await open_stream(engine, Operation.CHAT, body, meter)) as events:
        async for _ in events:
            left -= 1
            if left <= 0:
                return


async def whole(engine: Engine, meter: Meter, chance: random.Random) -> None:
    """One answer, cancelled at a random moment."""
    body = {"prompt": PROMPT, "max_tokens": chance.randint(1, 200), "ignore_eos": True}
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(chance.choice((0.0, 0.003, 0.02, 0.1, 0.5, 30.0))):
            await call(engine, Operation.COMPLETION, body, meter)


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_the_sum_of_all_meters_is_what_the_engine_counted(engine: Engine, seed: int) -> None:
    if isinstance(engine, FakeEngine):
        pytest.skip("the fake engine has no counters of its own")
    chance = random.Random(seed)  # noqa: S311
    await idle(engine)
    before = counters()
    meters = [Meter() for _ in range(60)]

    async def one(meter: Meter) -> None:
        kind = chance.choice((native, streamed, whole))
        with contextlib.suppress(LlmserveError):
            await asyncio.sleep(chance.random() * 0.5)
            await kind(engine, meter, chance)

    await asyncio.gather(*(one(meter) for meter in meters))
    await idle(engine)

    after = counters()
    prompts = sum(meter.prompt_tokens for meter in meters)
    completions = sum(meter.completion_tokens for meter in meters)
    assert (prompts, completions) == (after[0] - before[0], after[1] - before[1])
    assert prompts > 0
    assert sum(meter.completion_tokens == 0 for meter in meters) > 0


async def test_tokens_so_far_grow_while_the_answer_is_made(engine: Engine) -> None:
    meter = Meter()
    body = {"prompt": PROMPT, "max_tokens": 400, "ignore_eos": True}
    task = asyncio.create_task(call(engine, Operation.COMPLETION, body, meter))
    seen = set()
    while not task.done():
        seen.add(meter.tokens_so_far)
        await asyncio.sleep(0.005)
    await task

    assert len(seen) > 3
    assert max(seen) <= 400
    assert meter.tokens_so_far == meter.completion_tokens == 400


async def test_a_request_cut_before_its_first_token_has_used_nothing(engine: Engine) -> None:
    meter = Meter()
    stream = engine.generate(ask(max_tokens=5), meter)
    task = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    await stream.aclose()
    await idle(engine)

    assert (meter.prompt_tokens, meter.completion_tokens) == (0, 0)
