"""``/models``: looking into model files without loading them, also while the engine is
still loading. What clients name is looked up in a list, never made into a path."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from llmserve.catalog.catalog import Answer, Catalog
from llmserve.catalog.places import MAIN, Place
from llmserve.errors import InvalidRequest, ModelNotFound
from llmserve.http.body import read_json
from llmserve.http.context import caller, services
from llmserve.http.model_query import (
    ESTIMATE,
    LIST,
    NOTHING,
    TENSORS,
    estimate_args,
    page_args,
    parse,
    tensor_args,
)
from llmserve.types import Caller

_HEADERS = {"cache-control": "private, no-cache"}
_Args = Callable[[Request], Mapping[str, Any]]


def build_router(catalog: Catalog) -> APIRouter:
    """The routes over ``catalog``."""
    router = APIRouter(tags=["models"])

    for path, args, allowed, question, summary in _QUESTIONS:
        router.add_api_route(
            path,
            _handler(catalog, question, args),
            methods=["GET"],
            name=path,
            summary=summary,
            response_model=None,
            openapi_extra=_schema(path, allowed),
        )
    router.add_api_route(
        "/models",
        _list(catalog),
        methods=["GET"],
        summary="All models known to this server",
        response_model=None,
        openapi_extra=_schema("/models", LIST),
    )
    router.add_api_route(
        "/api/show",
        _show(catalog),
        methods=["POST"],
        summary="A model, as Ollama shows it",
        response_model=None,
        openapi_extra=_SHOW_SCHEMA,
    )
    return router


def _schema(path: str, query: tuple[str, ...]) -> dict[str, Any]:
    """The parameters, which handlers read by themselves."""
    text = {"schema": {"type": "string"}}
    named = [{"name": "name", "in": "path", "required": True, **text}] if "{" in path else []
    asked = [{"name": each, "in": "query", "required": False, **text} for each in query]
    return {"parameters": named + asked}


def _no_args(request: Request) -> Mapping[str, Any]:
    return parse(request, NOTHING)


_QUESTIONS: tuple[tuple[str, _Args, tuple[str, ...], str, str], ...] = (
    ("/models/{name:path}/tensors", tensor_args, TENSORS, "tensors", "The tensors of a model"),
    ("/models/{name:path}/metadata", _no_args, NOTHING, "metadata", "All that its files say"),
    ("/models/{name:path}/estimate", estimate_args, ESTIMATE, "estimate", "Can it be served?"),
    ("/models/{name:path}", _no_args, NOTHING, "summary", "A model, from its headers"),
    ("/model", _no_args, NOTHING, "summary", "The served model, from its headers"),
    ("/tensors", tensor_args, TENSORS, "tensors", "The tensors of the served model"),
)
"""The longer paths come first: names contain slashes."""

_SHOW_SCHEMA = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["model"],
                    "properties": {"model": {"type": "string"}, "verbose": {"type": "boolean"}},
                }
            }
        },
    }
}


def _handler(
    catalog: Catalog, question: str, args: _Args
) -> Callable[[Request], Awaitable[Response]]:
    async def handle(request: Request) -> Response:
        asked = args(request)
        name = _allowed(request, request.path_params.get("name"))
        known = request.headers.get("if-none-match")
        return _response(await catalog.ask(name, question, asked, known))

    return handle


def _list(catalog: Catalog) -> Callable[[Request], Awaitable[Response]]:
    async def handle(request: Request) -> Response:
        asked = parse(request, LIST)
        offset, limit = page_args(asked)
        part = asked.get("name", "")
        rows = [
            row
            for place in await catalog.places()
            if (row := _row(request, place)) and part in row["name"]
        ]
        page = {"object": "list", "total": len(rows), "data": rows[offset : offset + limit]}
        body = msgspec.json.encode(page)
        etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        same = etag in request.headers.get("if-none-match", "")
        return _response(Answer(etag, None if same else body))

    return handle


def _show(catalog: Catalog) -> Callable[[Request], Awaitable[Response]]:
    async def handle(request: Request) -> Response:
        settings = services(request).settings
        body = await read_json(request, settings.limits, settings.server.body_timeout_s)
        name, verbose = _show_fields(body)
        name = _allowed(request, name)
        place = await catalog.find(name)
        args = {"verbose": verbose, "modified": place.modified, "name": name}
        return _response(await catalog.ask(name, "show", args))

    return handle


def _show_fields(body: Mapping[str, Any]) -> tuple[str, bool]:
    unknown = next((key for key in body if key not in ("model", "name", "verbose")), None)
    if unknown is not None:
        raise InvalidRequest(
            f"There is no field {unknown[:40]!r} here; allowed are model and verbose.",
            param=unknown[:40],
        )
    name, verbose = body.get("model", body.get("name")), body.get("verbose", False)
    if not isinstance(name, str) or not name:
        raise InvalidRequest("model must be the name of a model.", param="model")
    if not isinstance(verbose, bool):
        raise InvalidRequest("verbose must be true or false.", param="verbose")
    return name.removesuffix(":latest"), verbose


def _allowed(request: Request, name: str | None) -> str:
    """The name to look for (``None``: the served model's). A key that is restricted to
    some models is told of no other. Raises ``ModelNotFound``."""
    who, own = caller(request), services(request).settings.model.names
    name = own[0] if name is None else name
    if not _may_see(who, (name, *own) if name in own else (name,)):
        raise ModelNotFound(name, sorted(who.models or ()))
    return name


def _may_see(who: Caller, names: tuple[str, ...]) -> bool:
    return who.models is None or not who.models.isdisjoint(names)


def _row(request: Request, place: Place) -> dict[str, Any] | None:
    """One line of the list, without the model's place on the machine."""
    wired = services(request)
    main, own = place.name == MAIN, wired.settings.model.names
    names = own if main else (place.name,)
    if not _may_see(caller(request), names):
        return None
    ready = wired.supervisor.ready
    adapters = wired.supervisor.engine().info.adapters if ready else ()
    return {
        "name": names[0],
        "served_as": list(own) if main else [],
        "loaded": ready and (main or (place.origin == "adapter" and place.name in adapters)),
        "origin": place.origin,
        "format": place.format,
        "bytes": place.bytes,
        "modified": place.modified,
        "problem": place.problem,
    }


def _response(answer: Answer) -> Response:
    headers = {"etag": answer.etag, **_HEADERS}
    if answer.body is None:
        return Response(status_code=304, headers=headers)
    return Response(answer.body, headers=headers, media_type="application/json")
