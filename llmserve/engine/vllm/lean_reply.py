"""Plain replies that are not streamed, without an object model.

vLLM makes five pydantic objects of an answer and we a dictionary of them, without what is
null. For an answer that is one text, the dictionary can be written down at once. The slow
twins are ``chat_completion_full_generator`` and ``request_output_to_completion_response``
in vLLM; ``tests/contract/test_lean.py`` compares the replies of both.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

from vllm.outputs import RequestOutput

from llmserve.engine.protocol import Context, Json
from llmserve.engine.vllm.lean import is_plain_chat, is_plain_completion
from llmserve.errors import InternalError
from llmserve.types import Operation


def make_lean_reply(operation: Operation, serving: Any, request: Any, context: Context) -> None:
    """Give this request's copy of a serving class a lean way to its reply, when the request
    is plain enough."""
    reply = _Reply(serving, context)
    if operation is Operation.CHAT and is_plain_chat(serving, request):
        serving.chat_completion_full_generator = reply.chat
    elif operation is Operation.COMPLETION and is_plain_completion(serving, request):
        serving.request_output_to_completion_response = reply.completion


class _Reply:
    def __init__(self, serving: Any, context: Context) -> None:
        self._serving = serving
        self._context = context

    async def chat(
        self,
        request: Any,
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
        role = self._serving.get_chat_request_role(request)
        message = {"role": role, "content": final.outputs[0].text, "refusal": None}
        usage = {"created_cache_tokens": final.num_cache_creation_tokens}
        kind = "chat.completion"
        return self._whole(request_id, kind, created, {"message": message}, final, usage)

    def completion(
        self,
        final_res_batch: list[RequestOutput],
        request: Any,  # noqa: ARG002
        request_id: str,
        created_time: int,
        *_: Any,
        **__: Any,
    ) -> Json:
        """In the place of ``OpenAIServingCompletion.request_output_to_completion_response``."""
        (final,) = final_res_batch
        text = {"text": final.outputs[0].text}
        return self._whole(request_id, "text_completion", created_time, text, final, {})

    def _whole(
        self,
        request_id: str,
        kind: str,
        created: int,
        body: Json,
        final: RequestOutput,
        details: Json,
    ) -> Json:
        output = final.outputs[0]
        choice = {"index": 0, **body, "logprobs": None, "finish_reason": output.finish_reason}
        if output.stop_reason is not None:
            choice["stop_reason"] = output.stop_reason
        prompt, completion = len(final.prompt_token_ids or ()), len(output.token_ids)
        usage: Json = {
            "prompt_tokens": prompt,
            "total_tokens": prompt + completion,
            "completion_tokens": completion,
        }
        details = {"cached_tokens": final.num_cached_tokens} | details
        if self._serving.enable_prompt_tokens_details:
            known = {name: value for name, value in details.items() if value is not None}
            usage |= {"prompt_tokens_details": known} if known else {}
        reply = {
            "id": request_id,
            "object": kind,
            "created": created,
            "model": self._context.model,
            "choices": [choice],
            "usage": usage,
        }
        if self._serving.system_fingerprint is not None:
            reply["system_fingerprint"] = self._serving.system_fingerprint
        return reply
