"""Usage on its way to the store: added up on the event loop, written off it in batches."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
import uuid
from collections.abc import Callable

from llmserve.state.protocol import BatchId, Store, UsageRow, for_log, shown
from llmserve.state.windows import utc_day
from llmserve.types import Outcome

log = logging.getLogger(__name__)

FLUSH_SECONDS = 0.5
"""How long usage waits to be written. With the time of one write on top, ``kill -9``
loses less than a second."""

_TICKS_BETWEEN_CHECKS = 4
_MAX_ROWS = 100_000

_Row = tuple[str, str, str, Outcome]


class UsageWriter:
    """Adds up what requests used, by day, key, model and outcome, and writes it twice a
    second. While the store fails, usage is kept and tried again; it is added up, so that
    it grows with the number of such combinations only, which ``max_rows`` bounds."""

    def __init__(
        self,
        store: Store,
        *,
        clock: Callable[[], float] = time.time,
        max_rows: int = _MAX_ROWS,
    ) -> None:
        self._store = store
        self._clock = clock
        self._max_rows = max_rows
        self._counts: dict[_Row, list[int]] = {}
        self._day_number = -1
        self._day = ""
        self._writer = uuid.uuid4().hex
        self._batch: tuple[BatchId, list[UsageRow]] | None = None
        self._batches = 0
        self._flushing = asyncio.Lock()
        self._dropped = 0
        self.failing: str | None = None
        """Why usage cannot be written now, in words for clients; ``None`` when it can."""

    def add(
        self, key_id: str, model: str, outcome: Outcome, prompt: int, cached: int, completion: int
    ) -> None:
        """Account one request. Call it on the event loop; it takes about a microsecond."""
        now = self._clock()
        if now // 86_400 != self._day_number:
            self._day_number, self._day = int(now // 86_400), utc_day(now)
        row = (self._day, key_id, model, outcome)
        counts = self._counts.get(row)
        if counts is None:
            if len(self._counts) >= self._max_rows:
                self._dropped += 1
                return
            counts = self._counts[row] = [0, 0, 0, 0]
        counts[0] += 1
        counts[1] += prompt
        counts[2] += cached
        counts[3] += completion

    async def keep_writing(self) -> None:
        """Write for as long as this task lives. Now and then look whether one could: an idle
        server with a full disk must say so before it takes a request."""
        for tick in itertools.count():
            await asyncio.sleep(FLUSH_SECONDS)
            await self.flush()
            if tick % _TICKS_BETWEEN_CHECKS == 0 and self._batch is None:
                await self._check()

    async def flush(self) -> None:
        """Write all that there is now. A failure is logged once, and shown by ``failing``."""
        async with self._flushing:
            if self._batch is not None:
                await self._write(*self._batch)
            if self._batch is None and self._counts:
                self._batch = self._seal()
                await self._write(*self._batch)

    async def aclose(self) -> None:
        """Write what is left; what the store does not take now is lost, and logged."""
        await self.flush()
        lost = len(self._counts) + (len(self._batch[1]) if self._batch else 0)
        if lost:
            log.error("%d rows of usage could not be written: %s", lost, self.failing)

    async def _check(self) -> None:
        try:
            await asyncio.to_thread(self._store.check)
        except Exception as error:
            self._failed(error)
        else:
            self._succeeded()

    async def _write(self, number: BatchId, rows: list[UsageRow]) -> None:
        try:
            # Cancelled here, the thread goes on. The batch is kept and sent again later,
            # under the same number, so that it is added once.
            await asyncio.to_thread(self._store.add_usage, rows, number)
        except Exception as error:
            # Whatever it is, the task that writes must live on, and readiness must show it.
            self._failed(error)
        else:
            self._batch = None
            if self.failing is None:
                self._succeeded()
            else:
                # That one batch went through does not mean that all is well: with a nearly
                # full disk we would say so and take it back every two seconds.
                await self._check()

    def _seal(self) -> tuple[BatchId, list[UsageRow]]:
        """What has been added up so far becomes a batch, which does not change any more."""
        counts, self._counts = self._counts, {}
        self._batches += 1
        rows = [UsageRow(*row, *sums) for row, sums in counts.items()]
        return BatchId(self._writer, self._batches), rows

    def _failed(self, error: Exception) -> None:
        if self.failing is None:
            log.error("usage cannot be written, and is kept for now: %s", for_log(error))
        self.failing = shown(error)

    def _succeeded(self) -> None:
        if self.failing is not None:
            log.warning("usage is written again")
        self.failing = None
        if self._dropped:
            log.error("the usage of %d requests was dropped: too many to keep", self._dropped)
            self._dropped = 0
