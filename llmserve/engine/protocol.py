"""The engine seam: all that the rest of the server knows of an engine.

One engine is one model on its GPUs. An engine has two faces: ``generate`` speaks our own
domain, ``openai`` speaks OpenAI's (and Anthropic's) JSON. No HTTP type and no vLLM type
crosses this file. There is no ``abort``: **closing the iterator is the abort**, and it
frees what the request held in the engine. Errors are those of ``llmserve.errors``.

``tests/contract`` holds the one suite that every implementation passes.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from llmserve.types import Chunk, GenerateRequest, Load, Meter, ModelInfo, Operation, Stage

Json: TypeAlias = dict[str, Any]
"""A JSON object."""


@dataclass(frozen=True, slots=True)
class Context:
    """What an engine must know of a request besides its body.

    ``request_id`` becomes part of the ids in the reply; ``model`` is the name that the
    reply carries (the engine's served name, or that of an adapter). ``cache_salt``: see
    ``GenerateRequest``. ``push`` is a short way for events: an engine may send those
    through it that come while its iterator is being waited for, instead of yielding them.
    Never the first event nor the last one, and always in order.
    """

    request_id: str
    model: str
    adapter: str | None = None
    cache_salt: str | None = None
    push: PushJson | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """One server-sent event of a streaming reply: its JSON, and its name where the
    protocol names events (Responses and Messages do, chat does not)."""

    data: Json
    event: str | None = None


PushText: TypeAlias = Callable[[str, int], bool]
"""Takes the next text of the only choice, and its number of tokens; false when it cannot
be sent at this moment."""

PushJson: TypeAlias = Callable[[bytes], bool]
"""Takes the JSON of the next event, encoded; false when it cannot be sent at this moment."""

Report: TypeAlias = Callable[[Stage, float | None], None]
"""Called by a starting engine: the stage it has reached, and its progress in that stage
(0 to 1, ``None`` when unknown). May be called from any thread."""


class Engine(Protocol):
    """One model, ready to generate. All methods are called on the event loop."""

    @property
    def info(self) -> ModelInfo:
        """What is served. Only valid after ``start``."""
        ...

    async def start(self, report: Report) -> None:
        """Load the model. Idempotent. Raises ``SetupError`` or ``ConfigError`` when it
        can never work, anything else when a later try may succeed."""
        ...

    def generate(
        self, request: GenerateRequest, meter: Meter, push: PushText | None = None
    ) -> AsyncGenerator[Chunk, None]:
        """Stream the chunks of all choices of one request, keeping ``meter`` up to date.
        ``push`` is a short way for plain text, as in ``Context``.

        Raises ``InvalidRequest`` (before the first chunk), ``EngineDied``,
        ``InternalError``. Closing the iterator aborts the request.
        """
        ...

    async def openai(
        self, operation: Operation, body: Json, context: Context, meter: Meter
    ) -> Json | AsyncGenerator[Event, None]:
        """Answer an OpenAI or Anthropic request: an object, or its events when the body
        asks for a stream. Raises as ``generate`` does, and ``NotImplementedHere`` when
        the model cannot do the operation. Closing the iterator (or cancelling this
        coroutine) aborts the request. The stream ends by exhaustion after success and by
        an exception otherwise; ``[DONE]`` is the caller's business.
        """
        ...

    def load(self) -> Load:
        """Requests and KV cache in use at this moment."""
        ...

    def steps(self) -> int:
        """How many steps the engine has made since its start. A step moves every running
        request on; while requests run and this stands still, the engine is stuck."""
        ...

    def alive(self) -> bool:
        """True from a successful start until the engine core dies or the engine is
        closed; a dead engine never recovers by itself."""
        ...

    async def aclose(self) -> None:
        """End all processes of the engine. Idempotent, also after a failed start."""
        ...
