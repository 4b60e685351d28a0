"""The policies of one request, in order, on one screen.

    route → admit → engine → account

Authentication comes before (``http.middleware``: it covers every path, not only these).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from llmserve.engine.protocol import Context, Event, Json
from llmserve.engine.supervisor import Supervisor
from llmserve.errors import InternalError, LlmserveError
from llmserve.gateway.admission import Admission
from llmserve.gateway.deadline import Deadline
from llmserve.gateway.entry import Entry
from llmserve.gateway.routing import Router, Target
from llmserve.types import Chunk, GenerateRequest, Operation, Outcome


class Gateway:
    """All requests that reach an engine pass here."""

    def __init__(
        self,
        supervisor: Supervisor,
        router: Router,
        admission: Admission,
        *,
        request_timeout: float | None,
    ) -> None:
        self.supervisor = supervisor
        self.router = router
        self.admission = admission
        self._timeout = request_timeout
        self._running: set[Deadline] = set()

    def route(self, entry: Entry, name: str | None, base_url: str) -> Target:
        """What serves the requested name. Raises ``Draining``, ``NotReady``,
        ``ModelNotFound``."""
        self.admission.check_open()
        target = self.router.route(name, base_url, self.supervisor.engine())
        entry.model = target.model
        return target

    async def generate(
        self, entry: Entry, target: Target, request: GenerateRequest
    ) -> AsyncGenerator[Chunk, None]:
        """The chunks of one request. Its permit is released when the iterator ends or is
        closed, and ``entry`` learns how it ended."""
        with self._admit(entry) as deadline:
            engine = self.supervisor.engine()
            chunks = engine.generate(replace(request, adapter=target.adapter), entry.meter)
            async for chunk in deadline.guard(chunks):
                yield chunk

    async def openai(self, entry: Entry, target: Target, operation: Operation, body: Json) -> Json:
        """The reply to a request that asks for no stream."""
        with self._admit(entry) as deadline:
            reply = await deadline.wait(self._ask(entry, target, operation, body))
            if not isinstance(reply, dict):
                raise InternalError()
            return reply

    async def openai_stream(
        self, entry: Entry, target: Target, operation: Operation, body: Json
    ) -> AsyncGenerator[Event, None]:
        """The events of a request that asks for a stream. As ``generate``."""
        with self._admit(entry) as deadline:
            events = await deadline.wait(self._ask(entry, target, operation, body))
            if isinstance(events, dict):
                raise InternalError()
            async for event in deadline.guard(events):
                yield event

    def stop_all(self, error: Callable[[], LlmserveError]) -> None:
        """End every running request with an error of its own."""
        for deadline in tuple(self._running):
            deadline.stop(error())

    async def _ask(
        self, entry: Entry, target: Target, operation: Operation, body: Json
    ) -> Json | AsyncGenerator[Event, None]:
        context = Context(entry.id, target.model, target.adapter)
        return await self.supervisor.engine().openai(operation, body, context, entry.meter)

    @contextmanager
    def _admit(self, entry: Entry) -> Iterator[Deadline]:
        with self.admission.permit():
            deadline = Deadline(self._timeout)
            self._running.add(deadline)
            entry.admitted = True
            try:
                yield deadline
            except (asyncio.CancelledError, GeneratorExit):
                entry.end(Outcome.DISCONNECTED)
                raise
            except BaseException as error:
                entry.fail(error)
                raise
            finally:
                self._running.discard(deadline)
