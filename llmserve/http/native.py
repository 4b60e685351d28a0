"""``POST /generate`` and ``POST /generate/stream``: the native routes."""

from __future__ import annotations

import time
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
    wired, account, outlet = services(request), entry(request), Outlet(request.scope)
    parsed, target, demand = await _accept(request)
    wire = _Wire(account, target, parsed.sampling.n, outlet)
    chunks = wired.gateway.generate(account, target, parsed, demand, wire.push)
    return await stream_response(request, chunks, wire, outlet, account, wired.settings.server)


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


class _Wire:
    """``token`` events, then one ``done``. Ids count from 0."""

    __slots__ = ("_account", "_ends", "_number", "_outlet", "_target")

    def __init__(self, account: Entry, target: Target, choices: int, outlet: Outlet) -> None:
        self._account = account
        self._target = target
        self._outlet = outlet
        self._ends: list[dict[str, Any] | None] = [None] * choices
        self._number = 0

    def push(self, text: str, tokens: int) -> bool:
        """Send a text the short way."""
        sent = self._outlet.write(_TOKEN % (self._number, encode(text), tokens))
        self._number += sent
        return sent

    def frame(self, chunk: Chunk) -> bytes:
        if chunk.finish_reason is not None:
            self._ends[chunk.index] = _end_json(chunk)
        return self._event("token", _chunk_json(chunk))

    def end(self) -> bytes:
        ends = [end or {} for end in self._ends]
        done = {"finish_reason": ends[0].get("finish_reason"), "choices": ends}
        return self._event("done", _summary(self._account, self._target) | done)

    def error(self, error: LlmserveError) -> bytes:
        return sse(error_body(error, Protocol.OPENAI), "error")

    def _event(self, name: str, data: dict[str, Any]) -> bytes:
        number, self._number = self._number, self._number + 1
        return b"id: %d\n" % number + sse(data, name)


_TOKEN = b'id: %d\nevent: token\ndata: {"index":0,"text":%b,"tokens":%d}\n\n'
"""``_Wire.frame`` of a plain chunk."""


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
