"""The script of the fake engine: its replies, its pace and its failures. What it shares
with every engine is in ``tests/contract``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager

import pytest

from llmserve.engine.fake import FakeEngine, Reply, Script, fake_factory
from llmserve.engine.protocol import Context
from llmserve.errors import (
    EngineDied,
    InternalError,
    InvalidRequest,
    NotImplementedHere,
    NotReady,
    SetupError,
)
from llmserve.types import (
    FinishReason,
    GenerateRequest,
    Load,
    Message,
    Meter,
    Operation,
    Sampling,
    Stage,
)

pytestmark = pytest.mark.anyio

LONG = Sampling(max_tokens=3000, ignore_eos=True)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@asynccontextmanager
async def started(script: Script) -> AsyncIterator[FakeEngine]:
    engine = FakeEngine(script)
    await engine.start(lambda *_: None)
    try:
        yield engine
    finally:
        await engine.aclose()


async def text_of(
    engine: FakeEngine,
    prompt: str = "hello",
    sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
    *,
    adapter: str | None = None,
    priority: int = 0,
    meter: Meter | None = None,
) -> str:
    request = GenerateRequest("id", prompt, sampling=sampling, adapter=adapter, priority=priority)
    async with aclosing(engine.generate(request, meter or Meter())) as chunks:
        return "".join([chunk.text async for chunk in chunks])


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline, "the condition was not met in time"
        await asyncio.sleep(0)


# Replies


async def test_the_first_matching_rule_answers() -> None:
    script = Script(
        replies=(
            Reply("color", "Red, green, blue."),
            Reply("", lambda prompt: prompt.upper() if "shout" in prompt else None),
            Reply("color", "never"),
        )
    )
    async with started(script) as engine:
        assert await text_of(engine, "Name a color") == "Red, green, blue."
        assert await text_of(engine, "shout this") == "SHOUT THIS"
        assert await text_of(engine, "else") not in ("", "never")


async def test_a_rule_sees_the_rendered_messages() -> None:
    async with started(Script(replies=(Reply("", lambda prompt: prompt),))) as engine:
        messages = (Message("system", "Be brief."), Message("user", "Hi"))
        chunks = engine.generate(GenerateRequest("id", messages=messages), Meter())
        text = "".join([chunk.text async for chunk in chunks])

    assert text == "<|system|>Be brief.\n<|user|>Hi\n<|assistant|>"


async def test_replies_differ_by_prompt_seed_and_adapter_only() -> None:
    async with started(Script(adapters=("poet",))) as engine:
        plain = await text_of(engine, "one", Sampling(seed=1))
        assert await text_of(engine, "one", Sampling(seed=1)) == plain
        assert await text_of(engine, "two", Sampling(seed=1)) != plain
        assert await text_of(engine, "one", Sampling(seed=2)) != plain
        assert await text_of(engine, "one", Sampling(seed=1), adapter="poet") != plain
        greedy = [await text_of(engine, "one", Sampling(temperature=0, seed=s)) for s in (1, 2)]
        assert greedy[0] == greedy[1]


async def test_replies_are_the_same_in_every_process() -> None:
    async with started(Script(reply_words=6)) as engine:
        text = await text_of(engine, "hello", Sampling(temperature=0))

    assert text == "東京 window returns small answer quiet."


async def test_some_chunks_have_no_text() -> None:
    async with started(Script(replies=(Reply("", "a 東京 b"),))) as engine:
        chunks = [chunk async for chunk in engine.generate(GenerateRequest("id", "x"), Meter())]

    assert [chunk.text for chunk in chunks] == ["a", " ", "", "", "東", "", "", "京", " b", ""]
    assert chunks[-1].finish_reason is FinishReason.STOP


async def test_a_character_cut_by_max_tokens_is_dropped() -> None:
    async with started(Script(replies=(Reply("", "a東"),))) as engine:
        assert await text_of(engine, "x", Sampling(max_tokens=3)) == "a"


async def test_the_end_token_is_counted_and_ignored_on_request() -> None:
    async with started(Script(replies=(Reply("", "a b"),))) as engine:
        meter = Meter()
        assert await text_of(engine, "x", meter=meter) == "a b"
        assert meter.completion_tokens == 3
        longer = await text_of(engine, "x", Sampling(max_tokens=9, ignore_eos=True))
        assert longer.startswith("a b")
        assert len(longer) > 9


async def test_an_embedding_model_does_not_generate() -> None:
    async with started(Script(tasks=frozenset({"embed"}))) as engine:
        with pytest.raises(NotImplementedHere):
            await text_of(engine)


async def test_an_unknown_adapter_names_the_known_ones() -> None:
    async with started(Script(adapters=("poet", "clerk"))) as engine:
        assert engine.info.adapters == ("poet", "clerk")
        with pytest.raises(InvalidRequest, match="poet, clerk"):
            await text_of(engine, adapter="baker")


# Pace


async def test_tokens_take_their_time() -> None:
    script = Script(prefill_seconds=0.05, seconds_per_token=0.01)
    async with started(script) as engine:
        meter, begin = Meter(), time.monotonic()
        await text_of(engine, "x", Sampling(max_tokens=6, ignore_eos=True), meter=meter)

    assert meter.first_token_at is not None
    assert meter.last_token_at is not None
    assert meter.first_token_at - begin >= 0.055
    assert meter.last_token_at - meter.first_token_at >= 0.045


async def test_at_full_speed_others_still_get_their_turn() -> None:
    async with started(Script()) as engine:
        task = asyncio.create_task(text_of(engine, "x", LONG))
        turns = 0
        while not task.done():
            await asyncio.sleep(0)
            turns += 1

    assert turns > 1000


async def test_who_finds_no_slot_waits_by_priority_then_arrival() -> None:
    order: list[str] = []

    async def ask(name: str, priority: int) -> None:
        await text_of(engine, name, Sampling(max_tokens=1), priority=priority)
        order.append(name)

    async with started(Script(max_running=1, stall_on="hold")) as engine:
        holder = asyncio.create_task(text_of(engine, "hold"))
        await until(lambda: engine.load().running == 1)
        asked = [("a", 0), ("b", 0), ("urgent", -1), ("late", 5)]
        tasks = [asyncio.create_task(ask(*each)) for each in asked]
        await until(lambda: engine.load().waiting == 4)
        holder.cancel()
        await asyncio.gather(*tasks)
        assert engine.load() == Load(0, 0, 0.0)

    assert order == ["urgent", "a", "b", "late"]


async def test_who_gives_up_waiting_leaves_the_queue() -> None:
    async with started(Script(max_running=1, stall_on="hold")) as engine:
        holder = asyncio.create_task(text_of(engine, "hold"))
        await until(lambda: engine.load().running == 1)
        waiter = asyncio.create_task(text_of(engine, "x"))
        await until(lambda: engine.load().waiting == 1)
        waiter.cancel()
        await until(lambda: engine.load().waiting == 0)
        assert engine.load().running == 1
        holder.cancel()
        await until(lambda: engine.load().running == 0)
        assert await text_of(engine, "next")


@pytest.mark.parametrize("ending", ["cancelled", "died"])
async def test_a_slot_handed_over_at_the_last_moment_is_not_lost(ending: str) -> None:
    async with started(Script(max_running=1, stall_on="hold")) as engine:
        holder = asyncio.create_task(text_of(engine, "hold"))
        await until(lambda: engine.load().running == 1)
        waiter = asyncio.create_task(text_of(engine, "x"))
        await until(lambda: engine.load().waiting == 1)
        holder.cancel()
        if ending == "cancelled":
            await until(lambda: engine.load().waiting == 0)
            waiter.cancel()
        else:
            engine.die()
        await asyncio.gather(holder, waiter, return_exceptions=True)
        assert engine.load() == Load(0, 0, 0.0)


async def test_the_kv_cache_fills_and_empties() -> None:
    async with started(Script(kv_capacity_tokens=100)) as engine:
        request = GenerateRequest("id", "a b c", sampling=LONG)
        async with aclosing(engine.generate(request, Meter())) as chunks:
            for _ in range(7):
                await anext(chunks)
            assert engine.load() == Load(1, 0, 0.1)
            for _ in range(200):
                await anext(chunks)
            assert engine.load().kv_cache_usage == 1.0
        assert engine.load() == Load(0, 0, 0.0)


# Failures


async def test_the_stages_are_reported_in_order() -> None:
    seen: list[tuple[Stage, float | None]] = []
    stages = ((Stage.IMPORTING, 0.0), (Stage.LOADING, 0.02), (Stage.WARMING, 0.0))
    engine = FakeEngine(Script(stages=stages))
    begin = time.monotonic()

    await engine.start(lambda stage, progress: seen.append((stage, progress)))

    assert seen == [(stage, at) for stage, _ in stages for at in (0.0, 1.0)]
    assert time.monotonic() - begin >= 0.02


async def test_a_start_can_fail_before_it_succeeds() -> None:
    engine = FakeEngine(Script(failing_starts=2))
    for _ in range(2):
        with pytest.raises(InternalError, match="failed to start"):
            await engine.start(lambda *_: None)
        assert not engine.alive()
        with pytest.raises(NotReady):
            _ = engine.info

    await engine.start(lambda *_: None)

    assert engine.alive()
    assert await text_of(engine)


async def test_a_start_can_fail_for_good() -> None:
    engine = FakeEngine(Script(failing_starts=1, start_error=SetupError))

    with pytest.raises(SetupError):
        await engine.start(lambda *_: None)
    await engine.aclose()


async def test_an_engine_closed_while_it_starts_stays_closed() -> None:
    engine = FakeEngine(Script(stages=((Stage.LOADING, 0.02),)))
    start = asyncio.create_task(engine.start(lambda *_: None))
    await asyncio.sleep(0)
    await engine.aclose()

    with pytest.raises(NotReady):
        await start
    assert not engine.alive()


async def test_it_dies_after_so_many_tokens() -> None:
    async with started(Script(die_after_tokens=5)) as engine:
        meter = Meter()
        with pytest.raises(EngineDied):
            await text_of(engine, "x", LONG, meter=meter)
        assert meter.completion_tokens == 5
        assert not engine.alive()
        with pytest.raises(EngineDied):
            await text_of(engine)


async def test_death_reaches_every_request_wherever_it_stands() -> None:
    script = Script(max_running=3, stall_on="stall", prefill_seconds=0.0, seconds_per_token=0.001)
    async with started(script) as engine:
        slow = FakeRequests(engine)
        for prompt in ("run", "stall", "run too", "waits"):
            slow.ask(prompt)
        await until(lambda: engine.load().waiting == 1 and slow.tokens > 0)
        engine.die()
        results = await asyncio.wait_for(slow.results(), 5)

        assert [type(result) for result in results] == [EngineDied] * 4
        assert engine.load() == Load(0, 0, 0.0)


async def test_death_reaches_a_step_of_several_choices() -> None:
    async with started(Script()) as engine:
        request = GenerateRequest("id", "x", sampling=Sampling(n=2))
        async with aclosing(engine.generate(request, Meter())) as chunks:
            await anext(chunks)
            engine.die()
            with pytest.raises(EngineDied):
                await anext(chunks)
        assert engine.load() == Load(0, 0, 0.0)


class FakeRequests:
    """Requests that run side by side."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine
        self._meters: list[Meter] = []
        self._tasks: list[asyncio.Task[str]] = []

    def ask(self, prompt: str) -> None:
        self._meters.append(Meter())
        coroutine = text_of(self._engine, prompt, LONG, meter=self._meters[-1])
        self._tasks.append(asyncio.create_task(coroutine))

    @property
    def tokens(self) -> int:
        return sum(meter.completion_tokens for meter in self._meters)

    async def results(self) -> list[str | BaseException]:
        return await asyncio.gather(*self._tasks, return_exceptions=True)


@pytest.mark.parametrize("tokens", [0, 3])
async def test_one_request_can_fail(tokens: int) -> None:
    async with started(Script(fail_on="BOOM", fail_after_tokens=tokens)) as engine:
        meter = Meter()
        with pytest.raises(InternalError):
            await text_of(engine, "go BOOM now", LONG, meter=meter)
        assert meter.completion_tokens == tokens
        assert engine.alive()
        assert await text_of(engine, "calm")
        assert engine.load() == Load(0, 0, 0.0)


async def test_one_request_can_stall_until_it_is_aborted() -> None:
    async with started(Script(stall_on="HANG", stall_after_tokens=2)) as engine:
        meter = Meter()
        task = asyncio.create_task(text_of(engine, "HANG", LONG, meter=meter))
        await until(lambda: meter.completion_tokens == 2)
        assert await text_of(engine, "others go on")
        assert not task.done()
        assert engine.load().running == 1
        task.cancel()
        await asyncio.wait([task])
        assert engine.load() == Load(0, 0, 0.0)


async def test_a_factory_plays_one_script_after_the_other() -> None:
    make = fake_factory(Script(model="first"), Script(model="second"))
    names = []
    for _ in range(3):
        engine = await make(lambda *_: None)
        await engine.start(lambda *_: None)
        names.append(engine.info.source)

    assert names == ["first", "second", "second"]


async def test_the_openai_face_fails_with_the_engine() -> None:
    async with started(Script(fail_on="BOOM")) as engine:
        body = {"prompt": "BOOM"}
        with pytest.raises(InternalError):
            await engine.openai(Operation.COMPLETION, body, Context("id", "m"), Meter())
        engine.die()
        with pytest.raises(EngineDied):
            await engine.openai(Operation.COMPLETION, body, Context("id", "m"), Meter())
