"""The OpenAI face: vLLM's own serving classes, called in our own process.

Everything vLLM knows of tool parsers, reasoning parsers, Responses and Messages is used
as it is. This file turns JSON into vLLM's request classes, finds the serving class,
turns returned and streamed error objects into exceptions, and lets ``conform`` mend what
the published schemas do not allow. A plain request goes the short way instead (``direct``);
``answer`` is where the two part.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import msgspec
from fastapi import Request, Response
from pydantic import BaseModel, TypeAdapter
from vllm.entrypoints.anthropic.protocol import (
    AnthropicCountTokensRequest,
    AnthropicMessagesRequest,
)
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.entrypoints.pooling.embed.protocol import EmbeddingRequest
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.tokenize.protocol import DetokenizeRequest, TokenizeRequest

from llmserve.engine.protocol import Context, Event, Json
from llmserve.engine.vllm import conform, constraints, tools
from llmserve.engine.vllm.core import Core
from llmserve.engine.vllm.direct import Plan
from llmserve.engine.vllm.errors import Fields, from_error_body, translate
from llmserve.engine.vllm.inline import is_short
from llmserve.engine.vllm.lean import make_lean
from llmserve.engine.vllm.lean_reply import make_lean_reply
from llmserve.engine.vllm.metered import Client
from llmserve.errors import (
    InternalError,
    LlmserveError,
    NotImplementedHere,
    PromptTooLong,
    ServerError,
)
from llmserve.types import Meter, Operation

log = logging.getLogger(__name__)

_OURS = frozenset(("timeout_s", "priority"))
_SALTED = frozenset(
    (
        *(Operation.CHAT, Operation.COMPLETION, Operation.RESPONSES),
        *(Operation.MESSAGES, Operation.EMBEDDINGS),
    )
)

# What a prompt is made of, the field that is named in errors first.
_COUNTED = {
    Operation.CHAT: (
        *("messages", "tools", "chat_template_kwargs", "add_generation_prompt"),
        *("continue_final_message", "add_special_tokens"),
    ),
    Operation.COMPLETION: ("prompt", "add_special_tokens"),
}

Call = Callable[[Any, Any, Request], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class _Route:
    """How vLLM does an operation: its request class, the serving object on vLLM's state,
    the method, and the request field that holds the prompt (for error messages)."""

    request: TypeAdapter[Any]
    serving: str
    call: Call
    prompt_field: str


def _route(request: Any, serving: str, method: str, prompt_field: str) -> _Route:
    def call(target: Any, parsed: Any, http: Request) -> Awaitable[Any]:
        return getattr(target, method)(parsed, http)  # type: ignore[no-any-return]  # by name

    return _Route(TypeAdapter(request), serving, call, prompt_field)


ROUTES: dict[Operation, _Route] = {
    Operation.CHAT: _route(
        ChatCompletionRequest, "openai_serving_chat", "create_chat_completion", "messages"
    ),
    Operation.COMPLETION: _route(
        CompletionRequest, "openai_serving_completion", "create_completion", "prompt"
    ),
    Operation.RESPONSES: _route(
        ResponsesRequest, "openai_serving_responses", "create_responses", "input"
    ),
    Operation.MESSAGES: _route(
        AnthropicMessagesRequest, "anthropic_serving_messages", "create_messages", "messages"
    ),
    Operation.COUNT_TOKENS: _route(
        AnthropicCountTokensRequest, "anthropic_serving_messages", "count_tokens", "messages"
    ),
    Operation.EMBEDDINGS: _route(EmbeddingRequest, "serving_embedding", "__call__", "input"),
    Operation.TOKENIZE: _route(
        TokenizeRequest, "serving_tokenization", "create_tokenize", "prompt"
    ),
    Operation.DETOKENIZE: _route(
        DetokenizeRequest, "serving_tokenization", "create_detokenize", "tokens"
    ),
}


async def answer(
    core: Core, operation: Operation, body: Json, context: Context, meter: Meter
) -> Json | AsyncGenerator[Event, None]:
    """One request. See ``Engine.openai``."""
    direct = core.direct
    if direct is not None:
        plan = direct.plan(operation, body) or await direct.plan_long(operation, body)
        if plan is not None:
            return await _planned(core, plan, context, meter)
    return await _by_vllm(core, operation, body, context, meter)


async def _planned(
    core: Core, plan: Plan, context: Context, meter: Meter
) -> Json | AsyncGenerator[Event, None]:
    """A plain request, past vLLM's serving classes."""
    assert core.direct is not None
    client, fields = core.plain(meter), Fields(ROUTES[plan.operation].prompt_field, None)
    try:
        adapter = core.adapter(context.adapter)
        result = await core.direct.answer(plan, context, client, adapter)
    except Exception as error:
        raise _ours(error, fields, context) from error
    if isinstance(result, AsyncGenerator):
        return _events(result, plan.operation, fields, context, client)
    return result


async def _by_vllm(
    core: Core, operation: Operation, body: Json, context: Context, meter: Meter
) -> Json | AsyncGenerator[Event, None]:
    """A request through vLLM's serving class."""
    route = ROUTES[operation]
    serving = core.bound(route.serving, meter)
    if serving is None:
        raise NotImplementedHere(f"This model cannot do {operation.value}.")
    fields = Fields(route.prompt_field, _grammar_field(body))
    try:
        owned = await _owned(body, operation, context)
        request = route.request.validate_python(owned)
        if operation in (Operation.CHAT, Operation.COMPLETION):
            (make_lean if request.stream else make_lean_reply)(operation, serving, request, context)
            if is_short(request):
                core.render_inline(serving)
        result = await route.call(serving, request, _http_request(context))
        _raise_if_cancelled()
        if isinstance(result, ErrorResponse):
            error_body = {"error": result.error.model_dump()}
            _raise_if_error(error_body, fields, serving.engine_client)
    except Exception as error:
        ours = _ours(error, fields, context)
        raise await _with_real_length(core, operation, body, context, ours) from error
    if isinstance(result, AsyncGenerator):
        return _events(result, operation, fields, context, serving.engine_client)
    if isinstance(result, dict):  # Lean: as it should be.
        return result
    reply = tools.hide_cut_call(operation, body, _plain(result))
    return conform.reply(operation, reply, context)


async def _with_real_length(
    core: Core, operation: Operation, body: Json, context: Context, error: LlmserveError
) -> LlmserveError:
    """vLLM stops counting a prompt one past the limit and then says "at least"; who wants
    to shorten it must know how long it is."""
    kept = _COUNTED.get(operation, ())
    if error.code != PromptTooLong.code or "at least" not in error.message or not kept:
        return error
    asked = {name: body[name] for name in kept if name in body}
    if not isinstance(asked.get("prompt", ""), str):
        return error
    try:
        counted = await answer(core, Operation.TOKENIZE, asked, context, Meter())
    except LlmserveError:
        return error
    assert isinstance(counted, dict)
    return PromptTooLong(counted["count"], core.info.max_model_len, param=kept[0])


def _grammar_field(body: Json) -> str | None:
    """Which field of the body constrains the output."""
    names = ("response_format", "structured_outputs", "text", "output_config", "tools")
    return next((name for name in names if body.get(name)), None)


async def _owned(body: Json, operation: Operation, context: Context) -> Json:
    """The body under the names that the engine knows, with our request id."""
    body = constraints.enforced(body)
    if tools.is_large(body):
        owned = await asyncio.to_thread(tools.prepare, operation, body)
    else:
        owned = tools.prepare(operation, body)
    # The deadline and the order of requests are the gateway's business.
    owned = {key: value for key, value in owned.items() if key not in _OURS}
    owned["model"] = context.model
    if context.cache_salt is not None and operation in _SALTED:
        owned["cache_salt"] = context.cache_salt
    if operation is Operation.RESPONSES:
        owned["request_id"] = f"resp_{context.request_id}"
    return owned


def _http_request(context: Context) -> Request:
    """vLLM takes the request id from a header; nothing else of HTTP reaches it."""
    headers = [(b"x-request-id", context.request_id.encode())]
    return Request({"type": "http", "headers": headers, "state": {}})


def _raise_if_cancelled() -> None:
    """vLLM's chat class answers a cancelled request with an error object; the
    cancellation itself must go on."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def _plain(result: Any) -> Json:
    if isinstance(result, BaseModel):
        plain: Json = result.model_dump(mode="json", by_alias=True)
    elif isinstance(result, Response):
        plain = msgspec.json.decode(result.body)
    else:
        raise InternalError()
    return plain


async def _events(
    stream: AsyncGenerator[Any, None],
    operation: Operation,
    fields: Fields,
    context: Context,
    client: Client,
) -> AsyncGenerator[Event, None]:
    """vLLM's events as JSON. Ends by exhaustion only when vLLM ended in success."""
    shaper = conform.Stream(operation, context)
    try:
        async with aclosing(stream) as items:
            async for item in items:
                if isinstance(item, Event):  # From the lean generator: as it should be.
                    yield item
                    continue
                for name, data in _decode(item):
                    _raise_if_error(data, fields, client)
                    for event in shaper.feed(name, data):
                        yield event
    except Exception as error:
        raise _ours(error, fields, context) from error


def _decode(item: Any) -> list[tuple[str | None, Json]]:
    """The events in one item of vLLM's stream: an event object, or SSE text."""
    if isinstance(item, BaseModel):
        data: Json = item.model_dump(mode="json", by_alias=True)
        return [(data.get("type"), data)]
    events = []
    for frame in item.split("\n\n"):
        name, data_text = None, None
        for line in frame.split("\n"):
            if line.startswith("event: "):
                name = line[7:]
            elif line.startswith("data: "):
                data_text = line[6:]
        if data_text is not None and data_text != "[DONE]":
            events.append((name, msgspec.json.decode(data_text)))
    return events


def _raise_if_error(data: Json, fields: Fields, client: Client) -> None:
    error = data.get("error")
    if isinstance(error, dict) and "message" in error:
        # What the engine raised says more than the text vLLM has made of it.
        raise client.failure or from_error_body(error, fields)


def _ours(error: Exception, fields: Fields, context: Context) -> LlmserveError:
    ours = translate(error, fields)
    if isinstance(ours, ServerError) and ours is not error:
        log.error("request %s failed in the engine: %r", context.request_id, error)
    return ours
