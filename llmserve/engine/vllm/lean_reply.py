"""Plain replies that are not streamed, without an object model.

vLLM makes five pydantic objects of an answer and we a dictionary of them, without what is
null. For an answer that is one text, the dictionary can be written down at once. The slow
twins are ``chat_completion_full_generator`` and ``request_output_to_completion_response``
in vLLM; ``tests/contract/test_lean.py`` compares the replies of both.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from vllm.outputs import RequestOutput

from llmserve.engine.protocol import Context, Json
from llmserve.engine.vllm.lean import Shape, is_plain_chat, is_plain_completion, shape_of
from llmserve.errors import InternalError
from llmserve.types import Operation


def make_lean_reply(operation: Operation, serving: Any, request: Any, context: Context) -> None:
    """Give this request's copy of a serving class a lean way to its reply, when the request
    is plain enough."""
    reply = _Reply(shape_of(serving, request, context))
    if operation is Operation.CHAT and is_plain_chat(serving, request):
        serving.chat_completion_full_generator = reply.chat
    elif operation is Operation.COMPLETION and is_plain_completion(serving, request):
        serving.request_output_to_completion_response = reply.completion


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole answer: its text, how it ended (as vLLM names it), and what it is made of,
    in tokens."""

    text: str
    finish_reason: str | None
    stop_reason: int | str | None
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int | None
    created_tokens: int | None


def chat_reply(shape: Shape, request_id: str, created: int, whole: Whole) -> Json:
    """The reply to a chat request."""
    message = {"role": shape.role, "content": whole.text, "refusal": None}
    details = {"cached_tokens": whole.cached_tokens, "created_cache_tokens": whole.created_tokens}
    head = {"id": request_id, "object": "chat.completion", "created": created}
    return _reply(shape, head, {"message": message}, whole, details)


def completion_reply(shape: Shape, request_id: str, created: int, whole: Whole) -> Json:
    """The reply to a completion request."""
    head = {"id": request_id, "object": "text_completion", "created": created}
    details = {"cached_tokens": whole.cached_tokens}
    return _reply(shape, head, {"text": whole.text}, whole, details)


def _reply(shape: Shape, head: Json, body: Json, whole: Whole, details: Json) -> Json:
    choice = {"index": 0, **body, "logprobs": None, "finish_reason": whole.finish_reason}
    if whole.stop_reason is not None:
        choice["stop_reason"] = whole.stop_reason
    usage: Json = {
        "prompt_tokens": whole.prompt_tokens,
        "total_tokens": whole.prompt_tokens + whole.completion_tokens,
        "completion_tokens": whole.completion_tokens,
    }
    if shape.cached_shown:
        known = {name: value for name, value in details.items() if value is not None}
        usage |= {"prompt_tokens_details": known} if known else {}
    reply = {**head, "model": shape.model, "choices": [choice], "usage": usage}
    if shape.fingerprint is not None:
        reply["system_fingerprint"] = shape.fingerprint
    return reply


class _Reply:
    """What stands in vLLM's serving classes."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape

    async def chat(
        self,
        _request: Any,
        result_generator: AsyncIterator[RequestOutput],
        request_id: str,
        *_: Any,
        **__: Any,
    ) -> Json:
        """In the place of ``OpenAIServingChat.chat_completion_full_generator``."""
        created = int(time.time())
        final = None
        async for output in result_generator:
            final = output
        if final is None:
            raise InternalError
        return chat_reply(self._shape, request_id, created, _whole(final))

    def completion(
        self,
        final_res_batch: list[RequestOutput],
        _request: Any,
        request_id: str,
        created_time: int,
        *_: Any,
        **__: Any,
    ) -> Json:
        """In the place of ``OpenAIServingCompletion.request_output_to_completion_response``."""
        (final,) = final_res_batch
        return completion_reply(self._shape, request_id, created_time, _whole(final))


def _whole(final: RequestOutput) -> Whole:
    (output,) = final.outputs
    return Whole(
        text=output.text,
        finish_reason=output.finish_reason,
        stop_reason=output.stop_reason,
        prompt_tokens=len(final.prompt_token_ids or ()),
        completion_tokens=len(output.token_ids),
        cached_tokens=final.num_cached_tokens,
        created_tokens=final.num_cache_creation_tokens,
    )
