"""Rate windows: one suite for both kinds, then what only the shared ones can do."""

from __future__ import annotations

import asyncio
import itertools
import logging
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import pytest
from postgres_server import Database
from state_support import until

from llmserve.errors import QuotaExceeded, RateLimited
from llmserve.state import BudgetSpent, Grant, LimitReached, Windows, ratelimit_headers
from llmserve.state.postgres import PostgresStore
from llmserve.state.windows import duration
from llmserve.state.windows_memory import MemoryWindows
from llmserve.state.windows_postgres import PostgresWindows
from llmserve.types import ANONYMOUS, Caller, Limits

pytestmark = pytest.mark.anyio
_IDS = itertools.count()

TAKER = """
import asyncio, sys
from llmserve.errors import RateLimited
from llmserve.state.windows_postgres import PostgresWindows
from llmserve.types import Caller, Limits

async def main():
    windows = PostgresWindows(sys.argv[1], lease_s=0.6)
    await windows.open()
    caller = Caller(id="k", limits=Limits(concurrency=10))
    print("ready", flush=True)
    sys.stdin.readline()
    results = await asyncio.gather(
        *(windows.take(caller, 1) for _ in range(20)), return_exceptions=True)
    print(sum(not isinstance(r, RateLimited) for r in results), flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def caller(**limits: int) -> Caller:
    return Caller(id=f"key-{next(_IDS)}", limits=Limits(**limits))


@asynccontextmanager
async def shared(database: Database, lease_s: float = 30.0) -> AsyncIterator[PostgresWindows]:
    windows = PostgresWindows(database.url, lease_s=lease_s)
    await windows.open()
    try:
        yield windows
    finally:
        await windows.aclose()


@pytest.fixture
def made(database: Database) -> Database:
    """A database with the tables of the state."""
    PostgresStore(database.url).close()
    return database


@pytest.fixture(params=["memory", "postgres"])
async def windows(request: pytest.FixtureRequest) -> AsyncIterator[Windows]:
    if request.param == "memory":
        yield MemoryWindows()
        return
    async with shared(request.getfixturevalue("made")) as opened:
        yield opened


async def refused(windows: Windows, who: Caller, tokens: int = 1) -> LimitReached | BudgetSpent:
    with pytest.raises(RateLimited) as caught:
        await windows.take(who, tokens)
    assert isinstance(caught.value, LimitReached | BudgetSpent)
    return caught.value


async def test_requests_per_minute(windows: Windows) -> None:
    who = caller(requests_per_minute=3)
    for left in (2, 1, 0):
        grant = await windows.take(who, 5)
        assert grant.standing.requests is not None
        assert grant.standing.requests.remaining == left
        windows.settle(grant, 5)
    error = await refused(windows, who)
    assert (error.status, error.type, error.code) == (
        429,
        "rate_limit_error",
        "rate_limit_exceeded",
    )
    assert error.retry_after == pytest.approx(20, abs=1)
    assert "3 requests per minute" in error.message
    assert ratelimit_headers(error)["x-ratelimit-remaining-requests"] == "0"
    await windows.take(caller(requests_per_minute=3), 5)


async def test_the_bucket_refills_evenly(windows: Windows) -> None:
    who = caller(requests_per_minute=600)
    for _ in range(600):
        windows.settle(await windows.take(who, 1), 1)
    error = None
    while error is None:
        try:
            windows.settle(await windows.take(who, 1), 1)
        except LimitReached as raised:
            error = raised
    assert error.retry_after is not None
    assert 0 < error.retry_after <= 0.1
    await asyncio.sleep(error.retry_after + 0.005)
    await windows.take(who, 1)


async def test_tokens_per_minute_are_corrected_afterwards(windows: Windows) -> None:
    who = caller(tokens_per_minute=100)
    first = await windows.take(who, 80)
    assert "100 tokens per minute" in (await refused(windows, who, 30)).message
    windows.settle(first, 10)
    second = await windows.take(who, 85)
    windows.settle(second, 195)
    error = await refused(windows, who, 1)
    # 105 tokens over the limit, and the one asked for: 106 * 60 / 100 seconds.
    assert error.retry_after == pytest.approx(63.6, abs=3)
    assert ratelimit_headers(error)["x-ratelimit-remaining-tokens"] == "0"


async def test_an_estimate_above_the_limit_passes_when_nothing_is_used(windows: Windows) -> None:
    who = caller(tokens_per_minute=100)
    grant = await windows.take(who, 10**9)
    assert grant.standing.tokens is not None
    assert grant.standing.tokens.remaining == 0
    await refused(windows, who, 1)
    windows.settle(grant, 0)
    await windows.take(who, 10**9)


async def test_a_budget_is_never_overspent_by_one_large_request(windows: Windows) -> None:
    who = caller(tokens_per_day=200)
    error = await refused(windows, who, 201)
    assert "200 of your 200 tokens for today left" in error.message
    await windows.take(who, 200)


async def test_concurrency(windows: Windows) -> None:
    who = caller(concurrency=2)
    first, _ = await windows.take(who, 1), await windows.take(who, 1)
    error = await refused(windows, who)
    assert "2 requests at work" in error.message
    assert error.retry_after == 1
    windows.settle(first, 1)
    windows.settle(first, 1)
    await windows.take(who, 1)
    await refused(windows, who)


async def test_the_budget_of_the_day(windows: Windows) -> None:
    who = caller(tokens_per_day=100)
    first = await windows.take(who, 60)
    error = await refused(windows, who, 50)
    assert not isinstance(error, QuotaExceeded), "the first request may yet give some back"
    windows.settle(first, 70)
    error = await refused(windows, who, 50)
    assert isinstance(error, QuotaExceeded)
    assert (error.status, error.code, error.retryable) == (429, "insufficient_quota", False)
    assert "30 of your 100 tokens" in error.message
    assert "00:00 UTC" in error.message
    assert error.retry_after is not None
    assert error.retry_after == pytest.approx(86_400 - time.time() % 86_400, abs=5)
    await windows.take(who, 30)


async def test_what_is_refused_takes_nothing(windows: Windows) -> None:
    who = caller(requests_per_minute=3, tokens_per_minute=100, concurrency=1, tokens_per_day=50)
    first = await windows.take(who, 10)
    for _ in range(5):
        assert "at work" in (await refused(windows, who, 10)).message
    windows.settle(first, 10)
    for _ in range(5):
        assert "tokens for today left" in (await refused(windows, who, 45)).message
        assert "tokens per minute" in (await refused(windows, who, 95)).message
    second = await windows.take(who, 10)
    assert second.standing.requests is not None
    assert second.standing.requests.remaining == 1
    assert second.standing.tokens is not None
    assert 80 <= second.standing.tokens.remaining <= 82


async def test_one_request_after_the_other_never_exceeds_one_at_a_time(windows: Windows) -> None:
    who = caller(concurrency=1)
    for _ in range(50):
        windows.settle(await windows.take(who, 1), 1)


async def test_a_cancelled_request_has_used_nothing(windows: Windows) -> None:
    """As often as one likes, and the limits have room for two."""
    who = caller(requests_per_minute=2, tokens_per_minute=20, concurrency=1, tokens_per_day=20)
    for _ in range(10):
        grant = await windows.take(who, 10)
        windows.cancel(grant)
        windows.cancel(grant)
        windows.settle(grant, 10)
    first = await windows.take(who, 10)
    assert first.standing.requests is not None
    assert first.standing.requests.remaining == 1
    windows.settle(first, 10)
    windows.cancel(first)
    windows.settle(await windows.take(who, 10), 10)
    assert "requests per minute" in (await refused(windows, who)).message


async def test_a_request_without_limits_can_be_cancelled(windows: Windows) -> None:
    windows.cancel(await windows.take(ANONYMOUS, 5))
    who = caller(tokens_per_day=10)
    windows.cancel(await windows.take(who, 10))
    await windows.take(who, 10)


async def test_a_local_request_can_be_cancelled_when_postgres_is_back(made: Database) -> None:
    who = caller(requests_per_minute=1)
    async with shared(made) as windows:
        made.cut()
        for _ in range(3):
            windows.cancel(await windows.take(who, 1))
        grant = await windows.take(who, 1)
        assert grant.lease is None
        made.restore()
        await until(lambda: not windows._broken)
        windows.cancel(grant)
        await taken_until(windows, who)


async def test_the_order_of_the_checks(windows: Windows) -> None:
    who = caller(requests_per_minute=1, tokens_per_minute=10, concurrency=1, tokens_per_day=10)
    await windows.take(who, 10)
    assert "requests per minute" in (await refused(windows, who, 10)).message
    who = caller(tokens_per_minute=10, concurrency=1, tokens_per_day=10)
    await windows.take(who, 10)
    assert "tokens per minute" in (await refused(windows, who, 10)).message
    who = caller(concurrency=1, tokens_per_day=10)
    await windows.take(who, 10)
    assert "at work" in (await refused(windows, who, 10)).message


async def test_without_limits_nothing_is_touched(windows: Windows) -> None:
    grants = {id(await windows.take(ANONYMOUS, 10**9)) for _ in range(1000)}
    assert len(grants) == 1
    grant = await windows.take(caller(), 5)
    windows.settle(grant, 5)
    assert ratelimit_headers(grant) == {}


async def test_a_new_day_and_a_clock_that_goes_back() -> None:
    now = 10 * 86_400.0 - 10
    windows = MemoryWindows({"k": 90}, "1970-01-10", clock=lambda: now)
    who = Caller(id="k", limits=Limits(tokens_per_day=100))
    grant = await windows.take(who, 10)
    assert (await refused(windows, who, 1)).retry_after == 1
    now += 10
    windows.settle(grant, 20)
    await windows.take(who, 80)
    assert "today" in (await refused(windows, who, 1)).message
    now -= 3600
    other = Caller(id="o", limits=Limits(requests_per_minute=1))
    await windows.take(other, 1)
    now -= 3600
    await refused(windows, other)
    now += 60
    await windows.take(other, 1)


async def test_the_memory_of_a_process_grows_with_its_limited_keys_only() -> None:
    windows = MemoryWindows()
    who = caller(requests_per_minute=10**6)
    for _ in range(100):
        windows.settle(await windows.take(who, 1), 1)
        windows.settle(await windows.take(caller(), 1), 1)
    assert len(windows._accounts) == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (-1, "0s"),
        (0.0001, "1ms"),
        (0.02, "20ms"),
        (0.9999, "1s"),
        (1, "1s"),
        (1.2, "2s"),
        (60, "1m0s"),
        (360, "6m0s"),
        (3599.9, "1h0m0s"),
    ],
)
async def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


async def test_headers() -> None:
    windows = MemoryWindows(clock=lambda: 0.0)
    who = caller(requests_per_minute=60, tokens_per_minute=1000)
    await windows.take(who, 100)
    assert ratelimit_headers(await windows.take(who, 400)) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "58",
        "x-ratelimit-reset-requests": "2s",
        "x-ratelimit-limit-tokens": "1000",
        "x-ratelimit-remaining-tokens": "500",
        "x-ratelimit-reset-tokens": "30s",
    }


async def taken_until(windows: Windows, who: Caller, tokens: int = 1) -> Grant:
    """Take as soon as it can be: other replicas let go a little later."""
    until_time = time.monotonic() + 5
    while True:
        try:
            return await windows.take(who, tokens)
        except RateLimited:
            assert time.monotonic() < until_time, "it never passed"
            await asyncio.sleep(0.01)


async def test_replicas_share_every_limit(made: Database) -> None:
    """Two pools, far more takes at once than any of the limits has room for."""
    async with shared(made) as one, shared(made) as other:
        for limits, tokens, room in (
            (Limits(requests_per_minute=7), 1, 7),
            (Limits(tokens_per_minute=70), 10, 7),
            (Limits(concurrency=7), 1, 7),
            (Limits(tokens_per_day=70), 10, 7),
        ):
            who = Caller(id=f"key-{next(_IDS)}", limits=limits)
            takes = [w.take(who, tokens) for w in (one, other) for _ in range(20)]
            results = await asyncio.gather(*takes, return_exceptions=True)
            granted = [result for result in results if isinstance(result, Grant)]
            assert len(granted) == room
            others = [result for result in results if not isinstance(result, Grant)]
            assert all(isinstance(result, RateLimited) for result in others)
            assert all(grant.lease for grant in granted), "none was decided locally"


async def test_processes_share_a_limit_and_a_dead_one_holds_no_place(made: Database) -> None:
    """Each of two processes wants 20 of 10 places. Then both are killed."""
    command = [sys.executable, "-c", TAKER, made.url]
    started = [asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE) for _ in range(2)]
    processes = await asyncio.gather(*started)
    try:
        for process in processes:
            assert await said(process) == b"ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(b"go\n")
        assert sum([int(await said(process)) for process in processes]) == 10
        who = Caller(id="k", limits=Limits(concurrency=10))
        async with shared(made) as windows:
            # The places are leases of 0.6 s; they are held for longer than that.
            for _ in range(12):
                await refused(windows, who)
                await asyncio.sleep(0.1)
            for process in processes:
                process.kill()
            await taken_until(windows, who)
    finally:
        for process in processes:
            with suppress(ProcessLookupError):
                process.kill()
            await process.communicate()


async def said(process: asyncio.subprocess.Process) -> bytes:
    assert process.stdout is not None
    return await process.stdout.readline()


async def test_leases_that_ran_out_are_removed(made: Database) -> None:
    who = caller(concurrency=1)
    async with AsyncExitStack() as stack:
        dead = await stack.enter_async_context(shared(made, lease_s=0.05))
        await dead.take(who, 1)
        for task in dead._tasks:
            task.cancel()
        assert made.run("SELECT count(*) FROM llmserve_leases") == [(1,)]
        await stack.enter_async_context(shared(made, lease_s=0.05))
        await until(lambda: made.run("SELECT count(*) FROM llmserve_leases") == [(0,)])


async def test_without_postgres_each_replica_enforces_the_limits(
    made: Database, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    who = caller(concurrency=2)
    async with shared(made) as windows:
        before = await windows.take(who, 1)
        assert before.lease
        made.cut()
        started = time.monotonic()
        during = [await windows.take(who, 1), await windows.take(who, 1)]
        await refused(windows, who)
        assert time.monotonic() - started < 1.5
        assert [grant.lease for grant in during] == [None, None]
        windows.settle(before, 1)
        windows.settle(during[0], 1)
        assert not (await windows.take(who, 1)).lease
        made.restore()
        await until(lambda: not windows._broken)
        grants = [await windows.take(who, 1), await windows.take(who, 1)]
        assert all(grant.lease for grant in grants)
        await refused(windows, who)
        windows.settle(during[1], 1)
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]


async def test_a_server_that_hangs_delays_a_decision_by_a_second(made: Database) -> None:
    who = caller(requests_per_minute=5)
    async with shared(made) as windows:
        await windows.take(who, 1)
        with made.server.hanging():
            started = time.monotonic()
            grants = await asyncio.gather(*(windows.take(who, 1) for _ in range(5)))
            assert time.monotonic() - started < 2
            started = time.monotonic()
            await refused(windows, who)
            assert time.monotonic() - started < 0.5
        assert all(grant.lease is None for grant in grants)
        await until(lambda: not windows._broken)
        assert (await windows.take(who, 1)).lease


async def test_a_take_that_is_cancelled_leaves_nothing_behind(made: Database) -> None:
    who = caller(concurrency=1, tokens_per_day=100)
    async with shared(made) as windows:
        for number in range(20):
            task = asyncio.create_task(windows.take(who, 100))
            await asyncio.sleep(0.0002 * number)
            task.cancel()
            (result,) = await asyncio.gather(task, return_exceptions=True)
            if isinstance(result, Grant):
                windows.settle(result, 0)
        await taken_until(windows, who, 100)


async def test_closing_settles_what_is_left(made: Database) -> None:
    who = caller(tokens_per_day=100)
    async with shared(made) as windows:
        windows.settle(await windows.take(who, 60), 90)
    async with shared(made) as windows:
        assert "10 of your 100" in (await refused(windows, who, 20)).message
