"""Keeps one engine alive: starts it, proves that it generates, restarts it when it dies.

starting ──first token──▶ READY ──core died──▶ RESTARTING (backoff) ──▶ starting
    │                     │  ▲                   ▲
    │              no step│  │a step             │
    │                     ▼  │                   │
    │                    STALLED ──for too long──┘
    └──cannot ever work, or failed too often──▶ FAILED
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TypeAlias

from llmserve.engine.protocol import Context, Engine, Report
from llmserve.engine.timeline import Timeline
from llmserve.errors import ConfigError, LlmserveError, NotReady, SetupError
from llmserve.settings import RuntimeSettings
from llmserve.types import START_STAGES, GenerateRequest, Meter, Operation, Sampling, Stage

log = logging.getLogger(__name__)

MakeEngine: TypeAlias = Callable[[Report], Awaitable[Engine]]
"""Obtains the model and makes a fresh, unstarted engine; called again after a crash."""

_WATCH_SECONDS = 0.1
_FINAL = (ConfigError, SetupError)


@dataclass(frozen=True, slots=True)
class Status:
    """Where the engine is. ``since`` is ``time.monotonic()`` of entering the stage,
    ``progress`` 0 to 1 or unknown, ``reason`` why it is not ready, ``restarts`` how often
    a running engine has died."""

    stage: Stage
    since: float
    progress: float | None = None
    reason: str | None = None
    restarts: int = 0

    @property
    def ready(self) -> bool:
        return self.stage is Stage.READY

    @property
    def start_progress(self) -> float:
        """How many of the stages of a start are behind, 0 to 1. Stages, not time."""
        if self.stage not in START_STAGES:
            return 0.0
        passed = START_STAGES.index(self.stage) + (self.progress or 0.0)
        return min(1.0, passed / (len(START_STAGES) - 1))


class Progress:
    """Tells for how long an engine that has requests has made no step."""

    def __init__(self, now: float) -> None:
        self._steps = -1
        self._since = now

    def stuck_seconds(self, steps: int, requests: int, now: float) -> float:
        """Seconds without a step, at ``now``; 0 while there is nothing to do."""
        if steps != self._steps or requests == 0:
            self._steps, self._since = steps, now
        return now - self._since


class Supervisor:
    """Owns the engine. ``engine()`` hands it out while it is ready."""

    def __init__(
        self,
        make_engine: MakeEngine,
        settings: RuntimeSettings,
        on_change: Callable[[Status], None] = lambda _: None,
    ) -> None:
        self._make_engine = make_engine
        self._settings = settings
        self._on_change = on_change
        self._engine: Engine | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.error: LlmserveError | None = None
        self.stopping = False
        """Set when the server shuts down: an engine that dies now stays dead."""
        self.status = Status(Stage.STARTING, time.monotonic())
        self.timeline = Timeline(self.status.stage, self.status.since)

    @property
    def ready(self) -> bool:
        """Whether the engine can take a request at this moment."""
        return self._engine is not None and self.status.ready and self._engine.alive()

    def engine(self) -> Engine:
        """The ready engine. Raises ``NotReady`` with the stage it is in otherwise."""
        if self._engine is None or not self.ready:
            detail = self.status.reason or f"The engine is {self.status.stage.value}."
            raise NotReady(f"The model is not ready yet. {detail}", retry_after=5.0)
        return self._engine

    async def run(self) -> None:
        """Supervise until cancelled. Returns when the engine can never work; ``error``
        then says why."""
        self._loop = asyncio.get_running_loop()
        failures = 0
        while True:
            try:
                engine = await self._start()
                failures = 0
                end = await self._watch(engine)
                if self.stopping:
                    return
                self._died(end)
            except _FINAL as error:
                self._give_up(error)
                return
            except Exception as error:  # whatever a starting engine throws: try again
                log.exception("The engine did not start.")
                failures += 1
                if failures > self._settings.max_restarts:
                    self._give_up(SetupError(f"The engine failed to start: {error}"))
                    return
            finally:
                await self._close()
            await self._back_off(failures)

    async def aclose(self) -> None:
        """End the engine. Call after ``run`` has been cancelled."""
        await self._close()
        self._enter(Stage.STOPPED, "The server is shutting down.")

    async def _start(self) -> Engine:
        engine = self._engine = await self._make_engine(self._report)
        await engine.start(self._report)
        self._enter(Stage.WARMING)
        await _first_token(engine)
        self._enter(Stage.READY)
        return engine

    async def _watch(self, engine: Engine) -> str:
        """Return when the engine is dead or stuck for good: what happened to it."""
        progress = Progress(time.monotonic())
        while engine.alive():
            load = engine.load()
            requests = load.running + load.waiting
            stuck = progress.stuck_seconds(engine.steps(), requests, time.monotonic())
            if 0 < self._settings.stall_restart_s <= stuck:
                return f"made no step for {stuck:.0f} s with {requests} requests"
            self._judge(stuck, requests)
            await asyncio.sleep(_WATCH_SECONDS)
        return "died"

    def _judge(self, stuck: float, requests: int) -> None:
        """Ready means able: not while requests run and nothing comes of them."""
        if 0 < self._settings.stall_timeout_s <= stuck:
            reason = (
                f"The engine has made no step for {stuck:.0f} s; "
                f"requests waiting for it: {requests}."
            )
            if self.status.stage is not Stage.STALLED:
                log.error("%s It counts as not ready until it makes one.", reason)
                self._enter(Stage.STALLED, reason)
            self.status = replace(self.status, reason=reason)
        elif self.status.stage is Stage.STALLED:
            log.warning("The engine makes steps again.")
            self._enter(Stage.READY)

    def _died(self, what: str) -> None:
        log.error("The engine %s; restarting it.", what)
        self.status = replace(self.status, restarts=self.status.restarts + 1)
        self._enter(Stage.RESTARTING, f"The engine {what} and is being restarted.")

    async def _back_off(self, failures: int) -> None:
        delay = self._settings.restart_first_s * 2 ** max(0, failures - 1)
        await asyncio.sleep(min(delay, self._settings.restart_max_s))

    def _give_up(self, error: LlmserveError) -> None:
        self.error = error
        self._enter(Stage.FAILED, error.message)

    async def _close(self) -> None:
        engine, self._engine = self._engine, None
        if engine is None:
            return
        try:
            await engine.aclose()
        except Exception:  # the next engine is worth more than the end of this one
            log.exception("The engine did not end in good order.")

    def _report(self, stage: Stage, progress: float | None) -> None:
        """``Report`` for a starting engine, from any thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._progress, stage, progress)

    def _progress(self, stage: Stage, progress: float | None) -> None:
        if self.status.stage in (Stage.READY, Stage.STALLED, Stage.STOPPED, Stage.FAILED):
            return
        if stage is not self.status.stage:
            self._enter(stage)
        self.status = replace(self.status, progress=progress)

    def _enter(self, stage: Stage, reason: str | None = None) -> None:
        if stage is self.status.stage and reason == self.status.reason:
            return
        now = time.monotonic()
        self.timeline.enter(stage, now)
        self.status = Status(stage, now, reason=reason, restarts=self.status.restarts)
        self._on_change(self.status)


async def _first_token(engine: Engine) -> None:
    """Ready means that a token has really come out (an embedding, for such a model)."""
    if "generate" not in engine.info.tasks:
        context = Context(request_id="warm-up", model=engine.info.name)
        body = {"input": "Hello", "model": engine.info.name}
        await engine.openai(Operation.EMBEDDINGS, body, context, Meter())
        return
    request = GenerateRequest("warm-up", prompt="Hello", sampling=Sampling(max_tokens=1))
    async with aclosing(engine.generate(request, Meter())) as chunks:
        async for _ in chunks:
            pass
