"""Names, deadlines, outcomes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from llmserve.engine.fake import FakeEngine, Script
from llmserve.errors import (
    Aborted,
    BodyTooLarge,
    Cancelled,
    DeadlineExceeded,
    Draining,
    EngineDied,
    InternalError,
    InvalidRequest,
    ModelNotFound,
    NotReady,
    Overloaded,
    QueueTimeout,
    RateLimited,
)
from llmserve.gateway.deadline import Deadline
from llmserve.gateway.entry import Entry, outcome_of, outcome_of_status
from llmserve.gateway.routing import Router
from llmserve.settings import ModelSettings
from llmserve.types import Outcome

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def engine(adapters: tuple[str, ...] = ()) -> FakeEngine:
    started = FakeEngine(Script(adapters=adapters))
    await started.start(lambda *_: None)
    return started


async def test_names() -> None:
    router = Router(ModelSettings(source="org/Some-Model"))
    served = await engine(adapters=("pirate",))
    for name in (None, "Some-Model", "default", "dummy", "tgi", "http://h:1", "http://h:1/v1/"):
        assert router.route(name, "http://h:1", served).model == "Some-Model"
    assert router.route("pirate", "", served).adapter == "pirate"
    for name in ("", "some-model", "http://other", "org/Some-Model"):
        with pytest.raises(ModelNotFound, match="Some-Model, pirate"):
            router.route(name, "http://h:1", served)


@pytest.mark.parametrize(
    ("source", "names", "expected"),
    [
        ("demo", (), ("SmolLM2-135M-Instruct", "demo")),
        ("org/name", (), ("name",)),
        ("/models/llama/", (), ("llama",)),
        ("a/b.gguf", (), ("b",)),
        ("org/name", ("x", "y"), ("x", "y")),
    ],
)
async def test_served_names(source: str, names: tuple[str, ...], expected: tuple[str]) -> None:
    assert ModelSettings(source=source, served_names=names).names == expected


class Items:
    """An async generator that remembers whether it was closed."""

    def __init__(self) -> None:
        self.closed = False

    async def items(self) -> AsyncGenerator[int, None]:
        try:
            yield 1
            await asyncio.get_running_loop().create_future()
        finally:
            self.closed = True


async def test_a_deadline_closes_what_it_guards() -> None:
    source = Items()
    async with Deadline(0.05).guard(source.items()) as guarded:
        assert await anext(guarded) == 1
        with pytest.raises(DeadlineExceeded, match=r"0\.05 s"):
            await anext(guarded)
    assert source.closed


async def test_stop_ends_a_wait_with_the_given_error() -> None:
    source, deadline = Items(), Deadline(None)
    asyncio.get_running_loop().call_later(0.02, deadline.stop, Draining("bye"))
    async with deadline.guard(source.items()) as guarded:
        assert await anext(guarded) == 1
        with pytest.raises(Draining, match="bye"):
            await anext(guarded)
    assert source.closed


async def test_stop_between_two_waits_counts_at_the_next() -> None:
    source, deadline = Items(), Deadline(None)
    async with deadline.guard(source.items()) as guarded:
        assert await anext(guarded) == 1
        deadline.stop(Draining("bye"))
        deadline.stop(InternalError())
        with pytest.raises(Draining):
            await anext(guarded)
    assert source.closed


async def test_waiting_for_a_turn_has_a_limit_of_its_own() -> None:
    loop = asyncio.get_running_loop()
    with pytest.raises(QueueTimeout, match=r"its turn longer than the limit of 0\.02 s"):
        await Deadline(5).wait_for_turn(loop.create_future(), 0.02)
    with pytest.raises(DeadlineExceeded, match=r"longer than the limit of 0\.02 s") as caught:
        await Deadline(0.02).wait_for_turn(loop.create_future(), 5)
    assert not isinstance(caught.value, QueueTimeout)


async def test_the_turn_in_time_lifts_the_limit_of_the_queue() -> None:
    loop = asyncio.get_running_loop()
    deadline, turn, work = Deadline(None), loop.create_future(), loop.create_future()
    loop.call_soon(turn.set_result, None)
    await deadline.wait_for_turn(turn, 0.02)
    loop.call_later(0.05, work.set_result, "done")
    assert await deadline.wait(work) == "done"


async def test_stop_reaches_a_request_that_waits_for_its_turn() -> None:
    loop = asyncio.get_running_loop()
    deadline = Deadline(None)
    loop.call_later(0.02, deadline.stop, Cancelled())
    with pytest.raises(Cancelled):
        await deadline.wait_for_turn(loop.create_future(), 5)


async def test_a_wait_that_is_cancelled_by_others_stays_cancelled() -> None:
    deadline = Deadline(None)
    task = asyncio.ensure_future(deadline.wait(asyncio.get_running_loop().create_future()))
    await asyncio.sleep(0)
    task.cancel()
    deadline.stop(Draining("bye"))
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


async def test_a_deadline_outside_of_any_wait_is_seen_by_the_next() -> None:
    deadline = Deadline(0.01)
    await asyncio.sleep(0.03)
    with pytest.raises(DeadlineExceeded):
        await deadline.wait(asyncio.sleep(0))
    with pytest.raises(DeadlineExceeded):
        await anext(deadline.guard(Items().items()))


async def test_a_deadline_that_was_left_ends_nothing() -> None:
    deadline = Deadline(0.01)
    deadline.close()
    deadline.close()
    await asyncio.sleep(0.03)
    assert await deadline.wait(asyncio.sleep(0, "fine")) == "fine"


async def test_closing_early_closes_the_source() -> None:
    source = Items()
    async with Deadline(None).guard(source.items()) as guarded:
        await anext(guarded)
    assert source.closed


async def test_outcomes_of_errors() -> None:
    cases = [
        (InvalidRequest("x"), False, Outcome.INVALID),
        (BodyTooLarge("x"), False, Outcome.INVALID),
        (RateLimited("x"), False, Outcome.REJECTED),
        (Overloaded("x"), False, Outcome.REJECTED),
        (NotReady("x"), False, Outcome.REJECTED),
        (Draining("x"), False, Outcome.REJECTED),
        (Draining("x"), True, Outcome.CANCELLED),
        (Aborted(), True, Outcome.CANCELLED),
        (EngineDied(), True, Outcome.FAILED),
        (InternalError(), True, Outcome.FAILED),
        (DeadlineExceeded("x"), True, Outcome.TIMEOUT),
        (RuntimeError("x"), True, Outcome.FAILED),
    ]
    for error, admitted, expected in cases:
        assert outcome_of(error, admitted=admitted) is expected, error


async def test_the_first_word_about_an_outcome_counts() -> None:
    entry = Entry("id", "/generate")
    entry.fail(DeadlineExceeded("x"))
    entry.end(Outcome.COMPLETED)
    assert entry.outcome is Outcome.TIMEOUT


async def test_outcomes_of_statuses() -> None:
    for status, expected in [
        (200, Outcome.COMPLETED),
        (400, Outcome.INVALID),
        (401, Outcome.INVALID),
        (429, Outcome.REJECTED),
        (503, Outcome.REJECTED),
        (500, Outcome.FAILED),
        (None, Outcome.FAILED),
    ]:
        assert outcome_of_status(status) is expected
