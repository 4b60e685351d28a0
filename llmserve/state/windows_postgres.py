"""Rate windows in PostgreSQL, so that a limit holds across replicas.

When PostgreSQL cannot be reached we fall back to the windows of this process: each replica
then enforces every limit by itself. Letting everybody through would lift the limits just
when something is wrong, and refusing everybody would make the database a single point of
failure for answers it has no part in; so an outage costs at most one limit per replica.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Coroutine, Sequence
from typing import Any, LiteralString, TypeVar

from psycopg_pool import AsyncConnectionPool

from llmserve.state.postgres import connection_info
from llmserve.state.windows import UNLIMITED, Grant, is_unlimited, refuse, standing
from llmserve.state.windows_memory import MemoryWindows
from llmserve.types import Caller

T = TypeVar("T")
log = logging.getLogger(__name__)

_WAIT_SECONDS = 1.0
_RETRY_SECONDS = 1.0
_RENEW_SECONDS = 2.0

_TAKE = "SELECT * FROM llmserve_take(%s, %s, %s, %s, %s, %s, %s, %s)"
_END = "SELECT llmserve_end(%s, %s, %s, %s, %s, %s, %s)"
_RENEW = "SELECT llmserve_renew(%s, %s)"


class PostgresWindows:
    """Token buckets that all replicas share.

    The place of a request is a lease of ``lease_s`` seconds, renewed for as long as it
    runs: the places of a replica that died come free by themselves. A decision waits for
    a second at most; after a failure nobody waits until PostgreSQL answers again.
    """

    def __init__(self, url: str, *, lease_s: float = 30.0, connections: int = 4) -> None:
        self._lease_s = lease_s
        self._renew_s = min(_RENEW_SECONDS, lease_s / 3)
        self._local = MemoryWindows()
        self._pool = AsyncConnectionPool(
            connection_info(url),
            min_size=1,
            max_size=connections,
            timeout=_WAIT_SECONDS,
            reconnect_timeout=_RETRY_SECONDS,
            kwargs={"autocommit": True},
            open=False,
        )
        self._leases: dict[str, Grant] = {}
        self._endings: dict[str, dict[str, tuple[Any, ...]]] = {}
        self._under_way: set[asyncio.Task[Any]] = set()
        self._to_end = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._broken = False

    async def open(self) -> None:
        """Begin to connect, to renew leases and to settle."""
        # psycopg logs every failed attempt by itself; one line from us is enough.
        logging.getLogger("psycopg").setLevel(logging.CRITICAL)
        await self._pool.open(wait=False)
        self._tasks = [asyncio.create_task(self._renew()), asyncio.create_task(self._settle())]

    async def take(self, caller: Caller, tokens: int) -> Grant:
        """See ``Windows.take``."""
        limits = caller.limits
        if is_unlimited(limits):
            return UNLIMITED
        if self._broken:
            return await self._local.take(caller, tokens)
        lease = uuid.uuid4().hex
        minute = (limits.requests_per_minute, limits.tokens_per_minute)
        most = (limits.concurrency, limits.tokens_per_day)
        decision = self._start(
            self._decide((caller.id, lease, *minute, *most, tokens, self._lease_s))
        )
        try:
            row = await _within(_WAIT_SECONDS, decision)
        except BaseException as error:
            # It may have been granted although nobody has heard of it, or may yet be.
            unheard = (caller.id, lease, *minute, tokens, 0, 1)
            decision.add_done_callback(lambda _: self._end(unheard))
            if not isinstance(error, Exception):
                raise
            self._failed(error)
            return await self._local.take(caller, tokens)
        which, day, requests_used, tokens_used, day_used = row
        if which is not None:
            refuse(
                which,
                limits,
                estimate=tokens,
                requests_used=requests_used,
                tokens_used=tokens_used,
                day_used=day_used,
                now=time.time(),
            )
        levels = standing(limits, requests_used, tokens_used)
        grant = Grant(caller.id, limits, levels, tokens, day, lease)
        self._leases[lease] = grant
        return grant

    def settle(self, grant: Grant, tokens: int) -> None:
        """See ``Windows.settle``. PostgreSQL is told in the background."""
        if grant.lease is None:
            self._local.settle(grant, tokens)
        else:
            self._give_back(grant, grant.lease, tokens, returned=0)

    def cancel(self, grant: Grant) -> None:
        """See ``Windows.cancel``. PostgreSQL is told in the background."""
        if grant.lease is None:
            self._local.cancel(grant)
        else:
            self._give_back(grant, grant.lease, 0, returned=1)

    async def aclose(self) -> None:
        """Settle what is left, for a second at most, and disconnect."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            await _within(_WAIT_SECONDS, self._start(self._deliver(list(self._endings))))
        except Exception as error:
            count = sum(map(len, self._endings.values()))
            log.warning("%d requests were not settled: %s", count, error)
        await self._pool.close(timeout=_WAIT_SECONDS)

    def _start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            task.exception()  # Nobody else may ask, and asyncio would complain.

    async def _decide(self, values: Sequence[Any]) -> tuple[Any, ...]:
        # A place that has just been given back must be free for the next request.
        await self._deliver([values[0]])
        return await self._call(_TAKE, values)

    async def _call(self, sql: LiteralString, values: Sequence[Any]) -> tuple[Any, ...]:
        async with self._pool.connection() as connection:
            row = await (await connection.execute(sql, values)).fetchone()
        return row or ()

    def _give_back(self, grant: Grant, lease: str, tokens: int, *, returned: int) -> None:
        if grant.settled:
            return
        grant.settled = True
        del self._leases[lease]
        limits = grant.limits
        minute = (limits.requests_per_minute, limits.tokens_per_minute)
        self._end((grant.caller_id, lease, *minute, grant.estimate, tokens, returned))

    def _end(self, values: tuple[Any, ...]) -> None:
        # Bounded by the requests under way: while PostgreSQL is away it grants nothing.
        caller_id, lease, *_ = values
        self._endings.setdefault(caller_id, {})[lease] = values
        self._to_end.set()

    async def _settle(self) -> None:
        while True:
            await self._to_end.wait()
            self._to_end.clear()
            while self._endings:
                try:
                    await _within(_WAIT_SECONDS, self._start(self._deliver(list(self._endings))))
                except Exception as error:
                    self._failed(error)
                    await asyncio.sleep(_RETRY_SECONDS)

    async def _deliver(self, callers: Sequence[str]) -> None:
        """Send what is settled of these callers, in one round trip; twice does no harm."""
        # In one order everywhere: replicas that lock the same callers must not deadlock.
        batch = [
            values for each in sorted(callers) for values in self._endings.get(each, {}).values()
        ]
        if not batch:
            return
        async with self._pool.connection() as connection, connection.cursor() as cursor:
            await cursor.executemany(_END, batch)
        for caller_id, lease, *_ in batch:
            endings = self._endings.get(caller_id, {})
            endings.pop(lease, None)
            if not endings:
                self._endings.pop(caller_id, None)

    async def _renew(self) -> None:
        """Keep our leases, and find out when PostgreSQL is back."""
        while True:
            await asyncio.sleep(_RETRY_SECONDS if self._broken else self._renew_s)
            try:
                renewal = self._call(_RENEW, (list(self._leases), self._lease_s))
                await _within(_WAIT_SECONDS, self._start(renewal))
            except Exception as error:
                self._failed(error)
            else:
                self._recovered()

    def _failed(self, error: BaseException) -> None:
        if not self._broken:
            self._broken = True
            log.error(
                "PostgreSQL does not answer, so each replica enforces the limits by itself: %s",
                " ".join(str(error).split()) or type(error).__name__,
            )

    def _recovered(self) -> None:
        if self._broken:
            self._broken = False
            log.warning("PostgreSQL answers again: the limits are shared again")


async def _within(seconds: float, task: asyncio.Task[T]) -> T:
    """Await it no longer than that. Not ``asyncio.timeout``: psycopg answers a cancellation
    only when it has told the server, which takes seconds when the server hangs. Raises
    ``TimeoutError``."""
    try:
        await asyncio.wait({task}, timeout=seconds)
        if not task.done():
            raise TimeoutError("no answer in time")
    finally:
        task.cancel()
    return task.result()
