"""Usage on its way to the store."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Sequence
from contextlib import suppress

import pytest
from state_support import Opener, until

from llmserve.errors import Unavailable
from llmserve.state import BatchId, Store, UsageRow, UsageWriter
from llmserve.types import Outcome

pytestmark = pytest.mark.anyio
DAY = 86_400.0


def totals(store: Store) -> dict[tuple[str, str, str], tuple[int, int, int, int]]:
    return {
        (row.day, row.key_id, row.outcome.value): (
            *(row.requests, row.prompt_tokens, row.cached_tokens, row.completion_tokens),
        )
        for row in store.usage("1970-01-01", "2999-12-31", None)
    }


class Flaky:
    """A store that refuses usage, or takes it and loses the answer."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.refuses = False
        self.forgets = False
        self.nearly_full = False
        self.gate = threading.Event()
        self.gate.set()
        self.begun = threading.Event()

    def add_usage(self, rows: Sequence[UsageRow], batch: BatchId | None = None) -> None:
        self.begun.set()
        assert self.gate.wait(10)
        if self.refuses:
            raise Unavailable("the disk is full")
        self._store.add_usage(rows, batch)
        if self.forgets:
            raise Unavailable("connection lost")

    def check(self) -> None:
        if self.refuses or self.nearly_full:
            raise Unavailable("the disk is nearly full")


async def test_it_adds_up_by_day_key_model_and_outcome(store: Store) -> None:
    now = 10 * DAY - 1
    writer = UsageWriter(store, clock=lambda: now)
    writer.add("a", "m", Outcome.COMPLETED, 10, 5, 20)
    writer.add("a", "m", Outcome.COMPLETED, 1, 0, 2)
    writer.add("a", "m", Outcome.DISCONNECTED, 3, 0, 1)
    now += 1
    writer.add("a", "m", Outcome.COMPLETED, 7, 0, 7)
    await writer.aclose()
    assert totals(store) == {
        ("1970-01-10", "a", "completed"): (2, 11, 5, 22),
        ("1970-01-10", "a", "disconnected"): (1, 3, 0, 1),
        ("1970-01-11", "a", "completed"): (1, 7, 0, 7),
    }


async def test_writers_of_several_processes_add_up(another_store: Opener) -> None:
    writers = [UsageWriter(another_store(), clock=lambda: 0.0) for _ in range(4)]
    for number in range(200):
        writers[number % 4].add("a", "m", Outcome.COMPLETED, 1, 0, 2)
        if number % 20 == 19:
            await asyncio.gather(*(writer.flush() for writer in writers))
    await asyncio.gather(*(writer.aclose() for writer in writers))
    assert totals(another_store()) == {("1970-01-01", "a", "completed"): (200, 200, 0, 400)}


async def test_it_writes_by_itself_within_a_second(store: Store) -> None:
    writer = UsageWriter(store)
    task = asyncio.create_task(writer.keep_writing())
    writer.add("a", "m", Outcome.FAILED, 1, 0, 0)
    assert await until(lambda: bool(totals(store))) < 1
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_a_failing_store_is_told_once_and_loses_nothing(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    flaky = Flaky(store)
    writer = UsageWriter(flaky, clock=lambda: 0.0)  # type: ignore[arg-type]
    flaky.refuses = True
    for _ in range(5):
        writer.add("a", "m", Outcome.COMPLETED, 1, 0, 1)
        await writer.flush()
    assert writer.failing == "the disk is full"
    assert len(caplog.records) == 1
    flaky.refuses = False
    await writer.flush()
    assert writer.failing is None
    assert totals(store) == {("1970-01-01", "a", "completed"): (5, 5, 0, 5)}
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]


async def test_a_lost_answer_does_not_count_twice(store: Store) -> None:
    flaky = Flaky(store)
    writer = UsageWriter(flaky, clock=lambda: 0.0)  # type: ignore[arg-type]
    flaky.forgets = True
    writer.add("a", "m", Outcome.COMPLETED, 1, 0, 1)
    await writer.flush()
    assert writer.failing == "connection lost"
    writer.add("a", "m", Outcome.COMPLETED, 1, 0, 1)
    flaky.forgets = False
    await writer.aclose()
    assert totals(store) == {("1970-01-01", "a", "completed"): (2, 2, 0, 2)}


async def test_a_write_that_is_cancelled_half_way_counts_once(store: Store) -> None:
    flaky = Flaky(store)
    writer = UsageWriter(flaky, clock=lambda: 0.0)  # type: ignore[arg-type]
    flaky.gate.clear()
    task = asyncio.create_task(writer.keep_writing())
    writer.add("a", "m", Outcome.COMPLETED, 1, 0, 1)
    await until(flaky.begun.is_set)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    flaky.gate.set()
    writer.add("a", "m", Outcome.COMPLETED, 1, 0, 1)
    await writer.aclose()
    assert totals(store) == {("1970-01-01", "a", "completed"): (2, 2, 0, 2)}


async def test_one_batch_that_went_through_is_no_recovery(
    store: Store, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmserve.state.usage.FLUSH_SECONDS", 0.001)
    caplog.set_level(logging.WARNING)
    flaky = Flaky(store)
    flaky.nearly_full = True
    writer = UsageWriter(flaky, clock=lambda: 0.0)  # type: ignore[arg-type]
    task = asyncio.create_task(writer.keep_writing())
    await until(lambda: writer.failing is not None)
    for _ in range(3):
        writer.add("a", "m", Outcome.COMPLETED, 1, 0, 1)
        await writer.flush()
        assert writer.failing == "the disk is nearly full"
    assert len(caplog.records) == 1
    flaky.nearly_full = False
    await until(lambda: writer.failing is None)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert caplog.records[1].message == "usage is written again"


class Broken:
    """A store with a fault that nobody thought of."""

    def add_usage(self, *_: object) -> None:
        raise PermissionError(13, "denied", "/secret/state.db")

    check = add_usage


async def test_clients_do_not_hear_what_the_system_says(caplog: pytest.LogCaptureFixture) -> None:
    writer = UsageWriter(Broken())  # type: ignore[arg-type]
    writer.add("a", "m", Outcome.COMPLETED, 1, 0, 1)
    await writer.flush()
    assert writer.failing == "The state store cannot be reached."
    assert "/secret/state.db" in caplog.text


async def test_what_it_keeps_is_bounded(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    writer = UsageWriter(store, clock=lambda: 0.0, max_rows=10)
    for number in range(15):
        writer.add(f"k{number}", "m", Outcome.COMPLETED, 1, 0, 1)
        writer.add("k0", "m", Outcome.COMPLETED, 1, 0, 1)
    await writer.aclose()
    assert len(totals(store)) == 10
    assert totals(store)[("1970-01-01", "k0", "completed")][0] == 16
    assert "usage of 5 requests was dropped" in caplog.text
