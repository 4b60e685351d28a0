"""The load itself: one step of a closed or of an open loop, on one server."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence

from llmserve.loadtest.arrivals import arrivals
from llmserve.loadtest.exchange import CONNECT, exchange
from llmserve.loadtest.figures import Record
from llmserve.loadtest.plan import Load
from llmserve.loadtest.prompts import Prompts
from llmserve.loadtest.seeds import seeded
from llmserve.loadtest.target import Target

# A server that is gone refuses at once; a closed loop would do nothing but ask it again.
_PAUSE_AFTER_REFUSAL = 0.1


class Step:
    """Requests at one level of load. ``records`` grow while it runs, in order of the end of
    each request; ``begin`` is when it began (``time.perf_counter``)."""

    def __init__(
        self,
        target: Target,
        prompts: Prompts,
        load: Load,
        level: float,
        *,
        first_index: int,
        timeout: float,
        seed: int,
    ) -> None:
        self.records: list[Record] = []
        self.in_flight = 0
        self.begin = 0.0
        self.target = target
        self.prompts = prompts
        self.load = load
        self._level = level
        self._next = self._first = first_index
        self._timeout = timeout
        self._seed = seed

    async def run(self) -> None:
        """Send everything and wait for all answers: the next step finds an idle server."""
        self.begin = time.perf_counter()
        if self.load.kind == "closed":
            await self._closed()
        else:
            await self._open()

    async def _closed(self) -> None:
        """So many requests at once, each followed by the next one."""
        async with asyncio.TaskGroup() as group:
            for _ in range(int(self._level)):
                group.create_task(self._worker())

    async def _worker(self) -> None:
        while self._more():
            record = await self._one(due=None)
            if record.failure == CONNECT:
                await asyncio.sleep(_PAUSE_AFTER_REFUSAL)

    def _more(self) -> bool:
        begun, load = self._next - self._first, self.load
        if load.requests is not None and begun >= load.requests:
            return False
        return load.seconds is None or time.perf_counter() - self.begin < load.seconds

    async def _open(self) -> None:
        """Each request at its time, whatever became of those before it. Beyond
        ``max_in_flight`` a request waits, and is late."""
        load = self.load
        due = arrivals(
            load.pattern,
            self._level,
            seconds=load.seconds,
            requests=load.requests,
            rng=seeded(self._seed, "arrivals"),
        )
        room = asyncio.Semaphore(load.max_in_flight)
        self.begin = time.perf_counter()
        async with asyncio.TaskGroup() as group:

            async def arrive(seconds: float) -> None:
                async with room:
                    await self._one(due=self.begin + seconds)

            async with _Pacer(due, self.begin, lambda each: group.create_task(arrive(each))) as p:
                await p.finished.wait()

    async def _one(self, due: float | None) -> Record:
        prompt = self.prompts.prompt(self._next)
        record = Record(self._next, due=0.0)
        self._next += 1
        self.in_flight += 1
        try:
            await exchange(self.target, prompt, record, self._timeout)
        finally:
            self.in_flight -= 1
        record.due = record.sent if due is None else due
        self.records.append(record)
        return record


class _Pacer:
    """Calls a function on the event loop at given times.

    A thread of its own does the waiting: the timers of asyncio and uvloop have a grain of a
    millisecond, which would be added to every latency.
    """

    def __init__(
        self, times: Sequence[float], begin: float, call: Callable[[float], object]
    ) -> None:
        self._times = times
        self._begin = begin
        self._call = call
        self._stop = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="arrivals", daemon=True)
        self.finished = asyncio.Event()

    async def __aenter__(self) -> _Pacer:
        self._thread.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop.set()
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        for each in self._times:
            wait = self._begin + each - time.perf_counter()
            if wait > 0 and self._stop.wait(wait):
                return
            self._loop.call_soon_threadsafe(self._call, each)
        self._loop.call_soon_threadsafe(self.finished.set)
