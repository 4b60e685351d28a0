"""The response cache as the gateway sees it: which requests have a key, and how an
answer that was kept is given again to another request.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, aclosing
from dataclasses import asdict, replace
from typing import TypeVar

from llmserve.engine.protocol import Event, Json
from llmserve.gateway.cache import Cache, Kept, cache_key
from llmserve.gateway.deadline import Deadline
from llmserve.gateway.entry import Entry
from llmserve.gateway.routing import Target
from llmserve.settings import AdmissionSettings, CacheSettings
from llmserve.types import Chunk, GenerateRequest, Operation

Item = TypeVar("Item", Chunk, Event, Json)

OPERATIONS = frozenset({Operation.CHAT, Operation.COMPLETION, Operation.MESSAGES})
"""What is kept. A Responses answer is full of ids that name stored things."""


class Answers:
    """Gives kept answers, and keeps new ones. A key that is ``None`` means: not this one."""

    def __init__(self, settings: CacheSettings, queue: AdmissionSettings) -> None:
        self.cache = Cache(
            settings, max_waiting=queue.max_queue, patience_s=queue.queue_timeout_s or 60
        )
        self.enabled = settings.enabled
        self._shared = settings.shared

    def openai_key(
        self, entry: Entry, target: Target, operation: Operation, body: Json
    ) -> bytes | None:
        """The key of a request to the OpenAI face."""
        if not self.enabled or operation not in OPERATIONS:
            return None
        return cache_key(self._scope(entry, target, operation.value), body)

    def native_key(self, entry: Entry, target: Target, request: GenerateRequest) -> bytes | None:
        """The key of a native request."""
        if not self.enabled:
            return None
        sampling = request.sampling
        body = asdict(replace(request, id="")) | {
            "temperature": sampling.temperature,
            "seed": sampling.seed,
        }
        return cache_key(self._scope(entry, target, "generate"), body)

    async def stream(
        self,
        key: bytes,
        entry: Entry,
        deadline: Deadline,
        make: Callable[[], AsyncGenerator[Item, None]],
    ) -> AsyncGenerator[Item, None]:
        """The items of the answer: kept ones, or those that ``make`` makes. ``entry``
        gets the header that says which."""
        async with AsyncExitStack() as stack:
            flight = await deadline.wait(stack.enter_async_context(self.cache.flight(key)))
            if flight.kept is not None:
                entry.headers["x-cache"] = "hit"
                _take_over(entry, flight.kept)
                for item in flight.kept.items:
                    yield _for_request(item, flight.kept.request_id, entry.id)
                return
            entry.headers["x-cache"] = "miss"
            made = []
            items = await stack.enter_async_context(aclosing(make()))
            async for item in items:
                made.append(item)
                yield item
            meter = entry.meter
            flight.keep(Kept(tuple(made), entry.id, meter.prompt_tokens, meter.completion_tokens))

    def _scope(self, entry: Entry, target: Target, operation: str) -> tuple[str, ...]:
        caller = "" if self._shared else entry.caller.id
        return (operation, target.model, target.version, target.adapter or "", caller)


def _take_over(entry: Entry, kept: Kept[Item]) -> None:
    """The engine does nothing for this request; its reply still says what it is worth."""
    entry.from_cache = True
    entry.admit()
    entry.meter.prompt_tokens = entry.meter.cached_tokens = kept.prompt_tokens
    entry.meter.completion_tokens = kept.completion_tokens


def _for_request(item: Item, old_id: str, new_id: str) -> Item:
    """An item under another request's id, made now. Ids are replaced where the protocols
    have them, never in text."""
    if isinstance(item, Chunk):
        return item
    if isinstance(item, Event):
        return replace(item, data=_readdressed(item.data, old_id, new_id))
    return _readdressed(item, old_id, new_id)


def _readdressed(data: Json, old_id: str, new_id: str) -> Json:
    copy = dict(data)
    message = copy.get("message")
    if isinstance(message, dict):
        copy["message"] = _readdressed(message, old_id, new_id)
    if isinstance(copy.get("id"), str):
        copy["id"] = copy["id"].replace(old_id, new_id)
    if "created" in copy:
        copy["created"] = int(time.time())
    return copy
