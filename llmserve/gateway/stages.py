"""The stages of a request that hold something for it: the limits of its caller, and a place
in the engine. Both give back what they hold, however the request ends.

Classes, because generators with ``asynccontextmanager`` around them cost each request more
calls, and each idle stream memory.
"""

from __future__ import annotations

import asyncio
from typing import Any

from llmserve.errors import DeadlineExceeded
from llmserve.gateway.admission import Admission, Permit
from llmserve.gateway.deadline import Deadline
from llmserve.gateway.demand import Demand
from llmserve.gateway.entry import Entry
from llmserve.gateway.running import Job, Running
from llmserve.state import BudgetSpent, Grant, LimitReached, Windows, ratelimit_headers
from llmserve.types import Outcome


class Limited:
    """Within the caller's limits, in the list of requests, under its deadline: ``seconds``
    until its end, of which ``spent`` have passed. Gives the deadline. Raises
    ``LimitReached`` and ``BudgetSpent``. ``entry`` learns how the block ended."""

    __slots__ = ("_deadline", "_demand", "_entry", "_grant", "_job", "_running", "_windows")

    def __init__(
        self, windows: Windows, running: Running, entry: Entry, demand: Demand, deadline: Deadline
    ) -> None:
        self._windows = windows
        self._running = running
        self._entry = entry
        self._demand = demand
        self._deadline = deadline
        self._job = Job(entry, deadline)
        self._grant: Grant | None = None

    async def __aenter__(self) -> Deadline:
        self._running.add(self._job)
        caller = self._entry.caller
        try:
            grant = await self._windows.take(caller, self._demand.tokens(caller.limits))
        except BaseException as error:
            if isinstance(error, LimitReached | BudgetSpent):
                self._entry.headers |= ratelimit_headers(error)
            self._end(error)
            raise
        self._grant = grant
        self._entry.headers |= ratelimit_headers(grant)
        return self._deadline

    async def __aexit__(self, _: Any, error: BaseException | None, __: Any) -> None:
        entry, grant = self._entry, self._grant
        assert grant is not None
        try:
            if entry.admitted:
                self._windows.settle(grant, 0 if entry.from_cache else entry.meter.total_tokens)
            else:  # It never got a place, so it has used up nothing.
                self._windows.cancel(grant)
        finally:
            self._end(error)

    def _end(self, error: BaseException | None) -> None:
        self._running.remove(self._job)
        self._deadline.close()
        _ended(self._entry, error)


def _ended(entry: Entry, error: BaseException | None) -> None:
    """Tell ``entry`` of the error that ended it. A cancelled task is a client that left."""
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        entry.end(Outcome.DISCONNECTED)
    elif error is not None:
        entry.fail(error)


class Admitted:
    """With a permit, which is taken before any header goes out, and waited for within
    ``queue_s``; in the engine for ``engine_s`` at most. Raises what ``Admission.enter``
    raises, and ``QueueTimeout``."""

    __slots__ = ("_admission", "_deadline", "_demand", "_engine_s", "_entry", "_permit", "_queue_s")

    def __init__(
        self,
        admission: Admission,
        entry: Entry,
        demand: Demand,
        deadline: Deadline,
        *,
        queue_s: float | None,
        engine_s: float | None,
    ) -> None:
        self._admission = admission
        self._entry = entry
        self._demand = demand
        self._deadline = deadline
        self._queue_s = queue_s
        self._engine_s = engine_s
        self._permit: Permit | None = None

    async def __aenter__(self) -> None:
        entry = self._entry
        permit = self._permit = self._admission.enter(entry.caller, self._demand, entry.meter)
        try:
            if permit.granted is not None:
                await self._deadline.wait_for_turn(permit.granted, self._queue_s)
        except BaseException:
            permit.release()
            raise
        self._deadline.tighten(
            self._engine_s,
            DeadlineExceeded,
            "The request was in the engine for longer than the limit of",
        )

    async def __aexit__(self, *_: object) -> None:
        assert self._permit is not None
        self._permit.release()
