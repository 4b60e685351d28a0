"""``POST /generate`` and ``POST /generate/stream``: the native routes."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from llmserve.errors import LlmserveError
from llmserve.gateway.demand import Demand
from llmserve.gateway.entry import Entry
from llmserve.gateway.routing import Target
from llmserve.http.body import read_json
from llmserve.http.context import base_url, entry, services
from llmserve.http.control import demand_of
from llmserve.http.departure import until_gone
from llmserve.http.envelopes import Protocol, encode, error_body, json_response, sse
from llmserve.http.native_schema import GenerateBody, parse
from llmserve.http.outlet import Outlet
from llmserve.http.route import DirectRoute
from llmserve.http.streaming import stream_response
from llmserve.types import Chunk, GenerateRequest, TokenLogprob

router = APIRouter(tags=["native"], route_class=DirectRoute)

_SCHEMA = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": GenerateBody.model_json_schema()}},
    }
}


@router.post("/generate", openapi_extra=_SCHEMA, summary="Generate text; reply as JSON")
async def generate(request: Request) -> Response:
    work = _collect(request, *await _accept(request))
    return json_response(await until_gone(request, work))


@router.post("/generate/stream", openapi_extra=_SCHEMA, summary="Generate text as a stream")
async def generate_stream(request: Request) -> Response:
    outlet = Outlet(request.scope)
    frames = _frames(request, *await _accept(request), outlet)
    settings = services(request).settings.server
    return await stream_response(request, frames, outlet, _error_event, entry(request), settings)


async def _accept(request: Request) -> tuple[GenerateRequest, Target, Demand]:
    wired, account = services(request), entry(request)
    settings = wired.settings
    body = await read_json(request, settings.limits, settings.server.body_timeout_s)
    parsed = parse(body, settings.limits, account.id)
    target = wired.gateway.route(account, body.get("model"), base_url(request))
    return parsed, target, demand_of(request, body, wired.supervisor.engine())


@dataclass(slots=True)
class _Choice:
    """What one choice has produced so far."""

    text: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: str | int | None = None

    def add(self, chunk: Chunk) -> None:
        self.text.append(chunk.text)
        self.logprobs += chunk.logprobs or ()
        if chunk.finish_reason is not None:
            self.finish_reason = chunk.finish_reason.value
            self.stop_reason = chunk.stop_reason

    def push(self, text: str, _tokens: int) -> bool:
        """Text that comes the short way: nobody has to wake up for it."""
        self.text.append(text)
        return True


async def _collect(
    request: Request, parsed: GenerateRequest, target: Target, demand: Demand
) -> dict[str, Any]:
    choices = [_Choice() for _ in range(parsed.sampling.n)]
    account, gateway = entry(request), services(request).gateway
    chunks = gateway.generate(account, target, parsed, demand, choices[0].push)
    async with aclosing(chunks):
        async for chunk in chunks:
            choices[chunk.index].add(chunk)
    wants_logprobs = parsed.sampling.logprobs is not None
    replies = [_choice_json(i, c, wants_logprobs) for i, c in enumerate(choices)]
    return _summary(account, target) | {
        "text": replies[0]["text"],
        "finish_reason": replies[0]["finish_reason"],
        "choices": replies,
    }


async def _frames(
    request: Request, parsed: GenerateRequest, target: Target, demand: Demand, outlet: Outlet
) -> AsyncGenerator[bytes, None]:
    """``token`` events, then one ``done``. Ids count from 0."""
    account, gateway = entry(request), services(request).gateway
    ends: list[dict[str, Any]] = [{} for _ in range(parsed.sampling.n)]
    number = 0

    def push(text: str, tokens: int) -> bool:
        nonlocal number
        sent = outlet.write(_TOKEN % (number, encode(text), tokens))
        number += sent
        return sent

    chunks = gateway.generate(account, target, parsed, demand, push)
    async with aclosing(chunks):
        async for chunk in chunks:
            yield _event("token", _chunk_json(chunk), number)
            number += 1
            if chunk.finish_reason is not None:
                ends[chunk.index] = _end_json(chunk)
    done = _summary(account, target) | {
        "finish_reason": ends[0]["finish_reason"],
        "choices": ends,
    }
    yield _event("done", done, number)


_TOKEN = b'id: %d\nevent: token\ndata: {"index":0,"text":%b,"tokens":%d}\n\n'
"""``_event("token", …)`` of a plain chunk."""


def _event(name: str, data: dict[str, Any], number: int) -> bytes:
    return b"id: %d\n" % number + sse(data, name)


def _error_event(error: LlmserveError) -> bytes:
    return sse(error_body(error, Protocol.OPENAI), "error")


def _chunk_json(chunk: Chunk) -> dict[str, Any]:
    data: dict[str, Any] = {
        "index": chunk.index,
        "text": chunk.text,
        "tokens": len(chunk.token_ids),
    }
    if chunk.logprobs is not None:
        data["logprobs"] = [_logprob_json(entry) for entry in chunk.logprobs]
    if chunk.finish_reason is not None:
        data |= _end_json(chunk)
    return data


def _end_json(chunk: Chunk) -> dict[str, Any]:
    reason = chunk.finish_reason.value if chunk.finish_reason else None
    stop = {} if chunk.stop_reason is None else {"stop_reason": chunk.stop_reason}
    return {"index": chunk.index, "finish_reason": reason} | stop


def _choice_json(index: int, choice: _Choice, logprobs: bool) -> dict[str, Any]:
    data: dict[str, Any] = {
        "index": index,
        "text": "".join(choice.text),
        "finish_reason": choice.finish_reason,
    }
    if choice.stop_reason is not None:
        data["stop_reason"] = choice.stop_reason
    if logprobs:
        data["logprobs"] = [_logprob_json(entry) for entry in choice.logprobs]
    return data


def _logprob_json(entry: TokenLogprob) -> dict[str, Any]:
    return {
        "token": entry.token,
        "id": entry.token_id,
        "logprob": entry.logprob,
        "top": [{"token": t, "id": i, "logprob": p} for t, i, p in entry.top],
    }


def _summary(account: Entry, target: Target) -> dict[str, Any]:
    """What every native reply says besides the text. Timings are seconds."""
    meter, now = account.meter, time.monotonic()
    first = meter.first_token_at
    decoding = None if first is None or meter.last_token_at is None else meter.last_token_at - first
    speed = (meter.completion_tokens - 1) / decoding if decoding else None
    return {
        "id": account.id,
        "model": target.model,
        "model_version": target.version,
        "usage": {
            "prompt_tokens": meter.prompt_tokens,
            "cached_tokens": meter.cached_tokens,
            "completion_tokens": meter.completion_tokens,
        },
        "timings": {
            "queue_s": meter.queue_seconds,
            "ttft_s": None if first is None else first - account.started,
            "total_s": now - account.started,
            "tokens_per_s": speed,
        },
    }
