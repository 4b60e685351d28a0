"""The policies of one request, in order, on one screen.

    route → limit → (cache) → admit → engine → account

Authentication comes before (``http.middleware``: it covers every path, not only these);
the account is closed there too, after the last byte.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from llmserve.engine.protocol import Context, Engine, Event, Json, PushJson, PushText
from llmserve.engine.supervisor import Supervisor
from llmserve.errors import InternalError, InvalidRequest, LlmserveError
from llmserve.gateway.admission import Admission
from llmserve.gateway.answers import Answers
from llmserve.gateway.deadline import Deadline
from llmserve.gateway.demand import Demand
from llmserve.gateway.entry import Entry
from llmserve.gateway.routing import Router, Target
from llmserve.gateway.running import Running
from llmserve.gateway.stages import Admitted, Limited
from llmserve.settings import Settings
from llmserve.state import Windows
from llmserve.types import Chunk, GenerateRequest, Operation

Item = TypeVar("Item", Chunk, Event)
_Ask = Callable[[Any], Awaitable[AsyncGenerator[Item, None]]]
"""Asks the engine for a stream, with the short way for its items, if there is one."""

_Key = Callable[[], bytes | None]


class Gateway:
    """All requests that reach an engine pass here."""

    def __init__(
        self, settings: Settings, supervisor: Supervisor, router: Router, windows: Windows
    ) -> None:
        self.supervisor = supervisor
        self.router = router
        self.admission = Admission(settings.admission, slots=lambda: self._slots)
        self.running = Running()
        self.answers = Answers(settings.cache, settings.admission)
        self._windows = windows
        self._settings = settings
        self._slots = 1

    def route(self, entry: Entry, name: str | None, base_url: str) -> Target:
        """What serves the requested name. Raises ``Draining``, ``NotReady``,
        ``ModelNotFound``, ``Forbidden``."""
        self.admission.check_open()
        engine = self.supervisor.engine()
        self._slots = engine.info.max_running
        target = self.router.route(name, base_url, engine, entry.caller)
        entry.model = target.model
        return target

    def generate(
        self,
        entry: Entry,
        target: Target,
        request: GenerateRequest,
        demand: Demand,
        push: PushText | None = None,
    ) -> AsyncGenerator[Chunk, None]:
        """The chunks of one request. Its permit is released when the iterator ends or is
        closed, and ``entry`` learns how it ended. ``push``: see ``Engine.generate``."""
        ours = replace(
            request, adapter=target.adapter, priority=0, cache_salt=self._cache_salt(entry)
        )

        async def ask(short: PushText | None) -> AsyncGenerator[Chunk, None]:
            return self._admit(entry).generate(ours, entry.meter, short)

        key = partial(self.answers.native_key, entry, target, ours)
        return self._stream(key, entry, demand, ask, push)

    async def openai(
        self, entry: Entry, target: Target, operation: Operation, body: Json, demand: Demand
    ) -> Json:
        """The reply to a request that asks for no stream."""

        async def reply(deadline: Deadline) -> Json:
            async with self._admitted(entry, demand, deadline):
                answer = await deadline.wait(self._ask(entry, target, operation, body, None))
                if not isinstance(answer, dict):
                    raise InternalError()
                return answer

        async def replies(deadline: Deadline) -> AsyncGenerator[Json, None]:
            yield await reply(deadline)

        async with self._limited(entry, demand) as deadline:
            key = self.answers.openai_key(entry, target, operation, body)
            if key is None:
                return await reply(deadline)
            stream = self.answers.stream(key, entry, deadline, lambda: replies(deadline))
            # To its very end: only then is the answer kept.
            (answer,) = [item async for item in stream]
            return answer

    def openai_stream(
        self,
        entry: Entry,
        target: Target,
        operation: Operation,
        body: Json,
        demand: Demand,
        push: PushJson | None = None,
    ) -> AsyncGenerator[Event, None]:
        """The events of a request that asks for a stream. As ``generate``."""

        async def ask(short: PushJson | None) -> AsyncGenerator[Event, None]:
            answer = await self._ask(entry, target, operation, body, short)
            if isinstance(answer, dict):
                raise InternalError()
            return answer

        key = partial(self.answers.openai_key, entry, target, operation, body)
        return self._stream(key, entry, demand, ask, push)

    def _stream(
        self, key: _Key, entry: Entry, demand: Demand, ask: _Ask[Item], push: Any
    ) -> AsyncGenerator[Item, None]:
        if self.answers.enabled:
            return self._kept_or_made(key, entry, demand, ask, push)
        return self._made(entry, demand, ask, push)

    async def _made(
        self,
        entry: Entry,
        demand: Demand,
        ask: _Ask[Item],
        push: Any,
        within: Deadline | None = None,
    ) -> AsyncGenerator[Item, None]:
        """What the engine gives when it is asked. ``within``: the limits of its caller have
        been looked at."""
        limited = self._limited(entry, demand) if within is None else nullcontext(within)
        async with limited as deadline, self._admitted(entry, demand, deadline):
            items = await deadline.wait(ask(push))
            del ask  # It knows the whole prompt, and a stream can be long.
            async with deadline.guard(items) as guarded:
                async for item in guarded:
                    yield item
                    del item  # As little does an idle stream need what it has sent.

    async def _kept_or_made(
        self, key_of: _Key, entry: Entry, demand: Demand, ask: _Ask[Item], push: Any
    ) -> AsyncGenerator[Item, None]:
        """As ``_made``, or from the cache. Whoever is over a limit costs no key."""
        async with self._limited(entry, demand) as deadline:
            key = key_of()
            # What is to be kept must come this way, and not the short one.
            short = push if key is None else None
            made = partial(self._made, entry, demand, ask, short, deadline)
            stream = made() if key is None else self.answers.stream(key, entry, deadline, made)
            async with aclosing(stream) as items:
                async for item in items:
                    yield item

    async def _ask(
        self,
        entry: Entry,
        target: Target,
        operation: Operation,
        body: Json,
        push: PushJson | None,
    ) -> Json | AsyncGenerator[Event, None]:
        context = Context(entry.id, target.model, target.adapter, self._cache_salt(entry), push)
        return await self._admit(entry).openai(operation, body, context, entry.meter)

    def _limited(self, entry: Entry, demand: Demand) -> Limited:
        try:
            deadline = Deadline(self._time_limit(demand), time.monotonic() - entry.started)
        except LlmserveError as error:
            entry.fail(error)
            raise
        return Limited(self._windows, self.running, entry, demand, deadline)

    def _admitted(self, entry: Entry, demand: Demand, deadline: Deadline) -> Admitted:
        return Admitted(
            self.admission,
            entry,
            demand,
            deadline,
            queue_s=self._settings.admission.queue_timeout_s or None,
            engine_s=self._settings.server.generation_timeout_s or None,
        )

    def _admit(self, entry: Entry) -> Engine:
        """The engine, which may have died while the request waited: that is no failure of
        ours."""
        engine = self.supervisor.engine()
        entry.admit()
        return engine

    def _time_limit(self, demand: Demand) -> float | None:
        most = self._settings.server.request_timeout_s or None
        wanted = demand.timeout_s
        if wanted is not None and most is not None and wanted > most:
            raise InvalidRequest(
                f"timeout_s is {wanted:g}; at most {most:g} seconds are allowed.",
                param="timeout_s",
            )
        return most if wanted is None else wanted

    def _cache_salt(self, entry: Entry) -> str | None:
        """What keeps the prefix cache of this caller apart from those of others."""
        if not self._settings.auth.salt_prefix_cache:
            return None
        return hashlib.sha256(entry.caller.id.encode()).hexdigest()

    def stop_all(self, error: Callable[[], LlmserveError]) -> None:
        """End every running request with an error of its own."""
        self.running.stop_all(error)
