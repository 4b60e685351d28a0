"""The simulated engine core: who runs, who waits, what is held, and how it ends."""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Literal

from llmserve.engine.fake.job import Job
from llmserve.engine.fake.script import Script
from llmserve.errors import EngineDied, InternalError, NotReady
from llmserve.types import Chunk, Load, Meter

State = Literal["new", "ready", "dead", "closed"]

_CLOSED = "The engine was closed while it worked on this request."


class Core:
    """Runs jobs. All waiting goes through ``_wait``, so that the end of the engine
    reaches every request at once, wherever it stands."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.state: State = "new"
        self.steps = 0
        self._running = 0
        self._queue: list[tuple[int, int, asyncio.Future[None]]] = []
        self._arrivals = 0
        self._waiting: set[asyncio.Future[None]] = set()
        self._kv_tokens = 0
        self._generated = 0

    def check(self) -> None:
        """Raises unless requests can be taken."""
        if self.state == "dead":
            raise EngineDied
        if self.state != "ready":
            raise NotReady(
                "The engine was closed." if self.state == "closed" else "The engine is not started."
            )

    def end(self, state: Literal["dead", "closed"]) -> None:
        """Stop for good: every request in flight raises ``EngineDied``."""
        if self.state in ("new", "ready"):
            self.state = state
        for future in self._waiting:
            if not future.done():
                future.set_exception(self._ended())

    def load(self) -> Load:
        usage = min(1.0, self._kv_tokens / self.script.kv_capacity_tokens)
        return Load(self._running, len(self._queue), usage)

    async def run(self, job: Job, meter: Meter) -> AsyncGenerator[Chunk, None]:
        """Generate all choices of a job, one token of each at every step."""
        self.check()
        async with self.slot(meter, job.prompt_tokens, job.priority):
            await self._pause_until(time.monotonic() + self.script.prefill_seconds)
            self.steps += 1
            # As with vLLM, a prompt counts once it has been read.
            meter.prompt_tokens = job.prompt_tokens
            due, steps = time.monotonic(), 0
            live = list(job.choices)
            held = 0
            try:
                while live:
                    due += self.script.seconds_per_token
                    await self._pause_until(due)
                    await self._misbehave(job, steps)
                    steps += 1
                    self.steps += 1
                    for choice in tuple(live):
                        self._count_token(meter)
                        held += 1
                        chunk = choice.step()
                        if chunk.finish_reason is not None:
                            live.remove(choice)
                        yield chunk
            finally:
                self._kv_tokens -= held

    def slot(self, meter: Meter, prompt_tokens: int, priority: int = 0) -> Slot:
        """Wait for a turn, and hold it and the prompt's part of the KV cache."""
        return Slot(self, meter, prompt_tokens, priority)

    async def take(self, slot: Slot) -> None:
        """Wait for its turn."""
        asked = time.monotonic()
        await self._acquire(slot.priority)
        slot.meter.queue_seconds = time.monotonic() - asked
        self._kv_tokens += slot.prompt_tokens

    def give_back(self, slot: Slot) -> None:
        """It is free again."""
        self._kv_tokens -= slot.prompt_tokens
        self._release()

    def _count_token(self, meter: Meter) -> None:
        if self.state != "ready":
            raise self._ended()
        if self._generated == self.script.die_after_tokens:
            self.end("dead")
            raise EngineDied
        self._generated += 1
        self._kv_tokens += 1
        meter.add_tokens(1, time.monotonic())

    async def _misbehave(self, job: Job, steps: int) -> None:
        script = self.script
        if script.fail_on and script.fail_on in job.prompt and steps == script.fail_after_tokens:
            raise InternalError
        if script.stall_on and script.stall_on in job.prompt and steps == script.stall_after_tokens:
            await self._wait(asyncio.get_running_loop().create_future())

    async def _pause_until(self, due: float) -> None:
        delay = due - time.monotonic()
        if delay <= 0:
            await asyncio.sleep(0)
        else:
            loop = asyncio.get_running_loop()
            future: asyncio.Future[None] = loop.create_future()
            timer = loop.call_later(delay, _wake, future)
            # As ``_wait``; one coroutine less for each of ten thousand that wait.
            self._waiting.add(future)
            try:
                await future
            finally:
                self._waiting.discard(future)
                timer.cancel()
        if self.state != "ready":
            raise self._ended()

    async def _wait(self, future: asyncio.Future[None]) -> None:
        self._waiting.add(future)
        try:
            await future
        finally:
            self._waiting.discard(future)

    async def _acquire(self, priority: int) -> None:
        if self._running < self.script.max_running:
            self._running += 1
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._arrivals += 1
        place = (priority, self._arrivals, future)
        heapq.heappush(self._queue, place)
        try:
            await self._wait(future)
        except BaseException:
            if place in self._queue:
                self._queue.remove(place)
                heapq.heapify(self._queue)
            elif not future.cancelled() and future.exception() is None:
                self._release()  # It was given the slot and cancelled in the same moment.
            raise

    def _release(self) -> None:
        """Hand the slot to the next in the queue, or give it back."""
        while self._queue:
            _, _, future = heapq.heappop(self._queue)
            if not future.done():
                future.set_result(None)
                return
        self._running -= 1

    def _ended(self) -> EngineDied:
        return EngineDied(_CLOSED) if self.state == "closed" else EngineDied()


@dataclass(frozen=True, slots=True)
class Slot:
    """A turn in the engine, for the time of a block."""

    core: Core
    meter: Meter
    prompt_tokens: int
    priority: int

    async def __aenter__(self) -> None:
        await self.core.take(self)

    async def __aexit__(self, *_: object) -> None:
        self.core.give_back(self)


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
