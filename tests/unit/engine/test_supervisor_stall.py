"""Ready means able: an engine that has requests and makes no step is not."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from llmserve.engine.fake import FakeEngine, Script, fake_factory
from llmserve.engine.protocol import Engine, Report
from llmserve.engine.supervisor import Progress, Supervisor
from llmserve.errors import EngineDied, NotReady
from llmserve.settings import RuntimeSettings
from llmserve.types import Chunk, GenerateRequest, Meter, Sampling, Stage

pytestmark = pytest.mark.anyio

SCRIPT = Script(stall_on="STALL", stall_after_tokens=2)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@asynccontextmanager
async def supervised(
    stall: float, restart: float = 0, script: Script = SCRIPT
) -> AsyncIterator[Supervisor]:
    settings = RuntimeSettings(
        engine="fake", stall_timeout_s=stall, stall_restart_s=restart, restart_first_s=0
    )
    supervisor = Supervisor(fake_factory(script), settings)
    task = asyncio.create_task(supervisor.run())
    try:
        await until(lambda: supervisor.ready)
        yield supervisor
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await supervisor.aclose()


class Stubborn(FakeEngine):
    """Dies after its first tokens, and cannot even be closed."""

    async def aclose(self) -> None:
        await super().aclose()
        raise RuntimeError("no")


async def test_an_engine_that_cannot_be_closed_is_replaced_all_the_same() -> None:
    async def make(_: Report) -> Engine:
        return Stubborn(Script(die_after_tokens=3))

    settings = RuntimeSettings(engine="fake", restart_first_s=0)
    supervisor = Supervisor(make, settings)
    task = asyncio.create_task(supervisor.run())
    await until(lambda: supervisor.ready)
    with pytest.raises(EngineDied):
        await drain(supervisor.engine(), "x")
    await until(lambda: supervisor.status.restarts == 1 and supervisor.ready)
    task.cancel()
    await asyncio.wait([task])
    await supervisor.aclose()


async def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition was not met in time"
        await asyncio.sleep(0.005)


async def drain(engine: object, prompt: str) -> list[Chunk]:
    assert isinstance(engine, FakeEngine)
    request = GenerateRequest("id", prompt=prompt, sampling=Sampling(max_tokens=5))
    return [chunk async for chunk in engine.generate(request, Meter())]


async def test_a_stalled_engine_is_not_ready_and_says_why() -> None:
    async with supervised(stall=0.15) as supervisor:
        engine = supervisor.engine()
        stalled = asyncio.create_task(drain(engine, "STALL"))
        await until(lambda: not supervisor.ready)

        assert supervisor.status.stage is Stage.STALLED
        assert "no step for" in (supervisor.status.reason or "")
        assert (supervisor.status.reason or "").endswith("requests waiting for it: 1.")
        with pytest.raises(NotReady, match="no step for"):
            supervisor.engine()

        # Another request shows that it moves again.
        assert len(await drain(engine, "go on")) == 5
        await until(lambda: supervisor.ready)
        assert supervisor.engine() is engine
        assert supervisor.status.restarts == 0
        stalled.cancel()


async def test_it_is_ready_again_when_the_stuck_request_is_gone() -> None:
    async with supervised(stall=0.15) as supervisor:
        stalled = asyncio.create_task(drain(supervisor.engine(), "STALL"))
        await until(lambda: not supervisor.ready)
        stalled.cancel()
        await until(lambda: supervisor.ready)


async def test_an_idle_engine_stays_ready() -> None:
    async with supervised(stall=0.15) as supervisor:
        await asyncio.sleep(0.5)
        assert supervisor.ready


async def test_a_stall_that_lasts_is_a_death(caplog: pytest.LogCaptureFixture) -> None:
    async with supervised(stall=0.1, restart=0.3) as supervisor:
        first = supervisor.engine()
        with caplog.at_level(logging.ERROR), pytest.raises(EngineDied):
            await drain(first, "STALL")
        await until(lambda: supervisor.ready)

        assert supervisor.engine() is not first
        assert supervisor.status.restarts == 1
    assert any("made no step for" in record.getMessage() for record in caplog.records)


async def test_the_watchdog_can_be_off() -> None:
    async with supervised(stall=0) as supervisor:
        stalled = asyncio.create_task(drain(supervisor.engine(), "STALL"))
        await asyncio.sleep(0.5)
        assert supervisor.ready
        stalled.cancel()


def test_progress_counts_from_the_last_step_or_the_last_idle_moment() -> None:
    progress = Progress(now=0.0)
    assert progress.stuck_seconds(steps=7, requests=0, now=10.0) == 0
    assert progress.stuck_seconds(steps=7, requests=2, now=13.0) == 3
    assert progress.stuck_seconds(steps=8, requests=2, now=14.0) == 0
    assert progress.stuck_seconds(steps=8, requests=2, now=15.5) == 1.5
    assert progress.stuck_seconds(steps=8, requests=0, now=16.0) == 0
