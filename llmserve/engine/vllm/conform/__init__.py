"""Makes vLLM's replies and stream events what OpenAI's and Anthropic's schemas say.

vLLM's reply models write a null for every field that has no value; OpenAI's schemas have
few nulls: a field without a value is absent. Beyond the nulls there are fields that the
schemas require and vLLM leaves out, and an event with the wrong name. What vLLM adds
(``stop_reason``, ``reasoning``, ``token_ids``, ...) stays when it has a value, because
the schemas allow additional properties.

``reply`` and ``Stream`` take what vLLM said as JSON objects and **change them in place**:
this is on the way of every token. Nothing here imports vLLM, and nothing here raises on
an object of an unexpected shape: it is left as it is.

Two things in the schemas cannot be met by an honest server, OpenAI's own included: a
completion chunk before the last has ``finish_reason: null``, and with ``echo`` the first
prompt token has no log probability (null in ``token_logprobs`` and ``top_logprobs``).
"""

from __future__ import annotations

from collections.abc import Callable

from llmserve.engine.protocol import Context, Event, Json
from llmserve.engine.vllm.conform.chat import chat_chunk, chat_reply, completion, embeddings
from llmserve.engine.vllm.conform.messages import message, message_event
from llmserve.engine.vllm.conform.nulls import drop_nulls
from llmserve.engine.vllm.conform.responses import response, response_event
from llmserve.types import Operation

_REPLIES: dict[Operation, Callable[[Json], Json]] = {
    Operation.CHAT: chat_reply,
    Operation.COMPLETION: completion,
    Operation.RESPONSES: response,
    Operation.EMBEDDINGS: embeddings,
    Operation.MESSAGES: message,
}
_EVENTS: dict[Operation, Callable[[Json], Json]] = {
    Operation.CHAT: chat_chunk,
    Operation.COMPLETION: completion,
    Operation.RESPONSES: response_event,
    Operation.MESSAGES: message_event,
}


def reply(operation: Operation, body: Json, context: Context) -> Json:
    """The whole (non-streaming) reply to a request of that operation."""
    conform = _REPLIES.get(operation, drop_nulls)
    return _named(conform(body), context)


class Stream:
    """The events of one streaming reply."""

    def __init__(self, operation: Operation, context: Context) -> None:
        self._conform = _EVENTS.get(operation, drop_nulls)
        self._context = context

    def feed(self, name: str | None, data: Json) -> tuple[Event, ...]:
        """The events to send for one of vLLM's. ``name`` is what vLLM called it, ``None``
        where the protocol does not name events. Responses and Messages repeat the name in
        ``type``, and that is the right one: a Responses stream that was cut short ends
        with ``response.incomplete``, which vLLM calls ``response.completed``."""
        data = self._conform(data)
        _named(data, self._context)
        return (Event(data, data.get("type", name) if name is not None else None),)


def _named(body: Json, context: Context) -> Json:
    """The reply under the name that the caller chose for the model."""
    for holder in (body, body.get("response"), body.get("message")):
        if isinstance(holder, dict) and "model" in holder:
            holder["model"] = context.model
    return body
