"""What every engine promises on its native face, whatever it is made of."""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import aclosing

import pytest
from driving import LONG, PROMPT, ask, idle, new_id, run

from llmserve.engine.protocol import Engine
from llmserve.errors import (
    EngineDied,
    InvalidRequest,
    LlmserveError,
    NotReady,
    PromptTooLong,
    Unavailable,
)
from llmserve.types import Constraint, FinishReason, GenerateRequest, Message, Meter

pytestmark = pytest.mark.anyio


# The stream


async def test_deltas_tokens_and_meter_agree(engine: Engine) -> None:
    answer = await run(engine, ask(temperature=0, max_tokens=40))

    assert answer.text()
    assert len(answer.ids()) == answer.meter.completion_tokens
    assert answer.meter.prompt_tokens > 0
    assert answer.meter.queue_seconds is not None
    assert answer.meter.first_token_at is not None
    assert answer.meter.last_token_at is not None
    assert answer.meter.first_token_at <= answer.meter.last_token_at
    again = await run(engine, ask(temperature=0, max_tokens=40))
    assert (again.text(), again.ids()) == (answer.text(), answer.ids())


async def test_it_streams(engine: Engine) -> None:
    answer = await run(engine, ask(temperature=0, max_tokens=64, ignore_eos=True))

    assert len(answer.chunks) > 8
    assert sum(bool(chunk.text) for chunk in answer.chunks) > 4


async def test_the_finish_reason_comes_once_and_last(engine: Engine) -> None:
    answer = await run(engine, ask(temperature=0, max_tokens=10))

    finishes = [chunk.finish_reason for chunk in answer.chunks]
    assert finishes[:-1] == [None] * (len(finishes) - 1)
    assert isinstance(finishes[-1], FinishReason)


@pytest.mark.parametrize("count", [1, 2, 17])
async def test_max_tokens_is_exact(engine: Engine, count: int) -> None:
    answer = await run(engine, ask(temperature=0, max_tokens=count, ignore_eos=True))

    assert len(answer.ids()) == answer.meter.completion_tokens == count
    assert answer.last().finish_reason is FinishReason.LENGTH
    assert answer.last().stop_reason is None


async def test_without_max_tokens_the_context_is_the_limit(engine: Engine) -> None:
    answer = await run(engine, ask(temperature=0, ignore_eos=True))

    room = engine.info.max_model_len - answer.meter.prompt_tokens
    assert answer.meter.completion_tokens == room
    assert answer.last().finish_reason is FinishReason.LENGTH


async def test_every_choice_is_a_whole_answer(engine: Engine) -> None:
    answer = await run(engine, ask(n=3, temperature=1, seed=5, max_tokens=12, ignore_eos=True))

    assert {chunk.index for chunk in answer.chunks} == {0, 1, 2}
    for index in range(3):
        assert len(answer.ids(index)) == 12
        assert [c.finish_reason for c in answer.of(index) if c.finish_reason] == ["length"]
    assert answer.meter.completion_tokens == 36
    assert len({answer.text(index) for index in range(3)}) > 1


async def test_messages_are_a_prompt_too(engine: Engine) -> None:
    messages = (Message("system", "Be brief."), Message("user", "Name three colors."))
    request = GenerateRequest(new_id(), messages=messages, sampling=ask(max_tokens=5).sampling)

    answer = await run(engine, request)

    assert answer.meter.prompt_tokens > 6
    assert 1 <= answer.meter.completion_tokens <= 5


# Sampling


def across_chunks(answer_chunks: list[str], start: int) -> str:
    """A few characters around a border between two chunks with text."""
    for left, right in zip(answer_chunks[start:], answer_chunks[start + 1 :], strict=False):
        candidate = left[-2:] + right[:2]
        if len(candidate) == 4 and "\ufffd" not in candidate:
            return candidate
    raise AssertionError("no two chunks to take a stop string from")


@pytest.mark.parametrize("start", [0, 3, 9])
async def test_a_stop_string_ends_the_text_before_it(engine: Engine, start: int) -> None:
    whole = await run(engine, ask(temperature=0, max_tokens=48, ignore_eos=True))
    stop = across_chunks([chunk.text for chunk in whole.chunks], start)

    answer = await run(
        engine, ask(temperature=0, max_tokens=48, ignore_eos=True, stop=("\0never\0", stop))
    )

    assert answer.text() == whole.text()[: whole.text().find(stop)]
    assert answer.last().finish_reason is FinishReason.STOP
    assert answer.last().stop_reason == stop
    # The tokens that completed the stop string were generated, and are counted.
    assert answer.ids() == whole.ids()[: len(answer.ids())]
    assert len(answer.ids()) == answer.meter.completion_tokens


async def test_a_stop_string_that_never_comes_changes_nothing(engine: Engine) -> None:
    without = await run(engine, ask(temperature=0, max_tokens=20, ignore_eos=True))
    beginning = without.text()[-1] + "\0" * 20

    answer = await run(
        engine, ask(temperature=0, max_tokens=20, ignore_eos=True, stop=(beginning,))
    )

    assert (answer.text(), answer.ids()) == (without.text(), without.ids())
    assert answer.last().finish_reason is FinishReason.LENGTH


async def test_a_seed_repeats_its_sample(engine: Engine) -> None:
    def seeded(seed: int) -> GenerateRequest:
        return ask(temperature=1, seed=seed, max_tokens=24)

    one = await run(engine, seeded(7))
    same = await run(engine, seeded(7))
    other = await run(engine, seeded(8))

    assert one.ids() == same.ids()
    assert one.ids() != other.ids()


@pytest.mark.parametrize("top", [0, 1, 4])
async def test_log_probabilities_belong_to_their_tokens(engine: Engine, top: int) -> None:
    answer = await run(engine, ask(temperature=0, max_tokens=12, logprobs=top))

    for chunk in answer.chunks:
        assert chunk.logprobs is not None
        assert tuple(score.token_id for score in chunk.logprobs) == chunk.token_ids
        for score in chunk.logprobs:
            assert score.logprob <= 0
            ranked = [logprob for _, _, logprob in score.top]
            assert len(ranked) == top
            assert ranked == sorted(ranked, reverse=True)


async def test_no_log_probabilities_unless_asked(engine: Engine) -> None:
    answer = await run(engine, ask(max_tokens=4))

    assert all(chunk.logprobs is None for chunk in answer.chunks)


SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}, "size": {"enum": ["small", "large"]}},
    "required": ["ok", "size"],
    "additionalProperties": False,
}


async def test_a_json_schema_constrains(engine: Engine) -> None:
    answer = await run(
        engine, ask(temperature=1, seed=1, max_tokens=200, constraint=Constraint(SCHEMA))
    )

    value = json.loads(answer.text())
    assert set(value) == {"ok", "size"}
    assert isinstance(value["ok"], bool)
    assert value["size"] in ("small", "large")
    assert answer.last().finish_reason is FinishReason.STOP


async def test_a_choice_constrains(engine: Engine) -> None:
    choice = Constraint(choice=("red", "green", "blue"))

    answer = await run(engine, ask(temperature=1, seed=1, max_tokens=20, constraint=choice))

    assert answer.text() in ("red", "green", "blue")


async def test_a_regex_constrains(engine: Engine) -> None:
    regex = Constraint(regex=r"[0-9]{4}-[ab]")

    answer = await run(engine, ask(temperature=1, seed=1, max_tokens=40, constraint=regex))

    assert re.fullmatch(r"[0-9]{4}-[ab]", answer.text())


# Many at once, and the end before the end


async def test_concurrent_streams_do_not_mix(engine: Engine) -> None:
    # Exact equality is fair to the real engine too: see ``make_vllm_engine``.
    prompts = [f"{PROMPT}, number {number}" for number in range(16)]

    def request(prompt: str) -> GenerateRequest:
        return ask(prompt, temperature=0, max_tokens=24, ignore_eos=True)

    alone = [await run(engine, request(prompt)) for prompt in prompts]
    together = await asyncio.gather(*(run(engine, request(prompt)) for prompt in prompts))

    assert [answer.ids() for answer in together] == [answer.ids() for answer in alone]
    assert [answer.text() for answer in together] == [answer.text() for answer in alone]
    assert len({answer.text() for answer in alone}) > 8
    await idle(engine)


async def test_closing_the_iterator_aborts_and_frees(engine: Engine) -> None:
    await idle(engine)
    meter = Meter()
    async with aclosing(
        engine.generate(GenerateRequest(new_id(), PROMPT, sampling=LONG), meter)
    ) as chunks:
        await anext(chunks)
        assert engine.load().running == 1

    await idle(engine)
    assert 1 <= meter.completion_tokens < 900
    assert meter.prompt_tokens > 0


async def test_cancelling_the_consumer_aborts_and_frees(engine: Engine) -> None:
    await idle(engine)
    meter, begun = Meter(), asyncio.Event()
    task = asyncio.create_task(run_long(engine, meter, begun))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    await idle(engine)
    assert meter.completion_tokens < 900


async def test_an_abort_leaves_the_others_alone(engine: Engine) -> None:
    request = ask(temperature=0, max_tokens=60, ignore_eos=True)
    alone = await run(engine, request)
    survivor = asyncio.create_task(run(engine, ask(temperature=0, max_tokens=60, ignore_eos=True)))

    for _ in range(4):
        doomed = GenerateRequest(new_id(), PROMPT, sampling=LONG)
        async with aclosing(engine.generate(doomed, Meter())) as chunks:
            await anext(chunks)

    assert (await survivor).ids() == alone.ids()
    await idle(engine)


async def test_an_iterator_that_is_never_begun_holds_nothing(engine: Engine) -> None:
    await idle(engine)
    async with aclosing(engine.generate(ask(), Meter())):
        pass

    await idle(engine)


# Errors


async def test_a_prompt_too_long_says_both_numbers(engine: Engine) -> None:
    limit = engine.info.max_model_len
    meter = Meter()
    request = ask("river " * (limit + 10))

    with pytest.raises(PromptTooLong) as caught:
        async with aclosing(engine.generate(request, meter)) as chunks:
            await anext(chunks)

    tokens, shown_limit = map(int, re.findall(r"\d+", caught.value.message))
    assert shown_limit == limit
    assert tokens > limit
    assert caught.value.param == "prompt"
    assert meter.completion_tokens == 0
    await idle(engine)


async def test_messages_too_long_name_their_field(engine: Engine) -> None:
    messages = (Message("user", "river " * (engine.info.max_model_len + 10)),)

    with pytest.raises(PromptTooLong) as caught:
        await run(engine, GenerateRequest(new_id(), messages=messages))

    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (GenerateRequest("a", PROMPT, adapter="no-such-adapter"), "model"),
        (GenerateRequest("b", ""), "prompt"),
        (ask(max_tokens=10**9), "max_tokens"),
        (ask(constraint=Constraint(regex="(")), None),
    ],
    ids=["adapter", "empty", "max_tokens", "regex"],
)
async def test_what_the_engine_refuses_is_an_invalid_request(
    engine: Engine, request_: GenerateRequest, param: str | None
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await run(engine, request_)

    assert caught.value.message
    if param is not None:
        assert caught.value.param == param
    await idle(engine)


async def test_after_an_error_the_engine_serves_the_next(engine: Engine) -> None:
    with pytest.raises(LlmserveError):
        await run(engine, ask("river " * (engine.info.max_model_len + 10)))

    assert (await run(engine, ask(max_tokens=3))).meter.completion_tokens > 0
    assert engine.alive()


# Life


async def test_info_says_what_is_served(engine: Engine) -> None:
    assert engine.info.source
    assert engine.info.max_model_len == 1024
    assert "generate" in engine.info.tasks


async def test_a_whole_life(fresh_engine: Engine) -> None:
    """One test for all of it, because a real engine takes 15 seconds to start."""
    engine, stages = fresh_engine, []
    assert not engine.alive()
    with pytest.raises(NotReady):
        await run(engine, ask())

    await engine.start(lambda stage, _: stages.append(stage))
    reported = len(stages)
    await engine.start(lambda stage, _: stages.append(stage))
    assert 0 < reported == len(stages)
    assert engine.alive()

    begun = asyncio.Event()
    running = asyncio.create_task(run_long(engine, Meter(), begun))
    await begun.wait()
    await engine.aclose()
    # ``EngineDied`` or ``Aborted``, whichever reaches the request first.
    with pytest.raises(Unavailable):
        await asyncio.wait_for(running, 10)

    assert not engine.alive()
    await engine.aclose()
    with pytest.raises((EngineDied, NotReady)):
        await run(engine, ask())
    assert engine.load().running == 0


async def run_long(engine: Engine, meter: Meter, begun: asyncio.Event) -> None:
    request = GenerateRequest(new_id(), PROMPT, sampling=LONG)
    async with aclosing(engine.generate(request, meter)) as chunks:
        async for _ in chunks:
            begun.set()
