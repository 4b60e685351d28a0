"""The OpenAI and Anthropic routes. What they mean is the engine's business."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from llmserve.engine.protocol import Event
from llmserve.errors import LlmserveError, ModelNotFound
from llmserve.http.body import read_json
from llmserve.http.context import base_url, caller, entry, services
from llmserve.http.control import demand_of
from llmserve.http.departure import until_gone
from llmserve.http.envelopes import error_event, json_response, sse
from llmserve.http.openai_fields import check_fields
from llmserve.http.outlet import Outlet
from llmserve.http.route import DirectRoute
from llmserve.http.streaming import stream_response
from llmserve.types import Operation

PATHS: dict[str, Operation] = {
    "/v1/chat/completions": Operation.CHAT,
    "/v1/completions": Operation.COMPLETION,
    "/v1/responses": Operation.RESPONSES,
    "/v1/messages": Operation.MESSAGES,
    "/v1/messages/count_tokens": Operation.COUNT_TOKENS,
    "/v1/embeddings": Operation.EMBEDDINGS,
    "/tokenize": Operation.TOKENIZE,
    "/detokenize": Operation.DETOKENIZE,
}

_GENERATING = (Operation.CHAT, Operation.COMPLETION, Operation.RESPONSES, Operation.MESSAGES)
_ENDS_WITH_DONE = (Operation.CHAT, Operation.COMPLETION)


def build_router() -> APIRouter:
    """The routes of ``PATHS``, and the list of models."""
    router = APIRouter(tags=["openai"])
    for path, operation in PATHS.items():
        router.add_api_route(
            path,
            _handler(operation),
            methods=["POST"],
            name=operation.value,
            openapi_extra=_SCHEMA,
            response_model=None,
            route_class_override=DirectRoute,
        )
    router.add_api_route("/v1/models", list_models, methods=["GET"], response_model=None)
    router.add_api_route(
        "/v1/models/{model:path}", retrieve_model, methods=["GET"], response_model=None
    )
    return router


_SCHEMA = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"type": "object"}}},
    }
}


def _handler(operation: Operation) -> Callable[[Request], Awaitable[Response]]:
    wire = _Wire(operation)

    async def handle(request: Request) -> Response:
        wired, account = services(request), entry(request)
        settings = wired.settings
        body = await read_json(request, settings.limits, settings.server.body_timeout_s)
        check_fields(operation, body, settings.limits)
        target = wired.gateway.route(account, body.get("model"), base_url(request))
        engine = wired.supervisor.engine()
        demand = demand_of(request, body, engine, generates=operation in _GENERATING)
        if body.get("stream"):
            outlet = Outlet(request.scope)
            events = wired.gateway.openai_stream(
                account, target, operation, body, demand, outlet.write_data
            )
            return await stream_response(request, events, wire, outlet, account, settings.server)
        work = wired.gateway.openai(account, target, operation, body, demand)
        return json_response(await until_gone(request, work))

    return handle


class _Wire:
    """Events as OpenAI and Anthropic write them."""

    def __init__(self, operation: Operation) -> None:
        self._operation = operation
        self._end = b"data: [DONE]\n\n" if operation in _ENDS_WITH_DONE else b""

    def frame(self, event: Event) -> bytes:
        return sse(event.data, event.event)

    def end(self) -> bytes:
        return self._end

    def error(self, error: LlmserveError) -> bytes:
        return error_event(error, self._operation)


async def list_models(request: Request) -> Response:
    """``GET /v1/models``: what a client may ask for now."""
    return json_response({"object": "list", "data": list(_models(request).values())})


async def retrieve_model(request: Request, model: str) -> Response:
    """``GET /v1/models/{id}``."""
    models = _models(request)
    if model not in models:
        raise ModelNotFound(model, list(models))
    return json_response(models[model])


def _models(request: Request) -> dict[str, dict[str, Any]]:
    wired = services(request)
    engine = wired.supervisor.engine()
    info, names = engine.info, wired.gateway.router.all_names(engine, caller(request))
    base = {
        "object": "model",
        "created": wired.started_at,
        "owned_by": "llmserve",
        "max_model_len": info.max_model_len,
    }
    parents = {name: {"parent": wired.gateway.router.names[0]} for name in info.adapters}
    return {name: {"id": name, **base, **parents.get(name, {})} for name in names}
