"""The composition root: what the server is made of, in one place."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response

from llmserve import __version__
from llmserve.engine.factory import engine_maker
from llmserve.engine.supervisor import MakeEngine, Status, Supervisor
from llmserve.errors import InvalidRequest, LlmserveError, MethodNotAllowed, NotFound
from llmserve.gateway.admission import Admission
from llmserve.gateway.auth import Keys
from llmserve.gateway.gateway import Gateway
from llmserve.gateway.routing import Router
from llmserve.http import health, native, openai
from llmserve.http.envelopes import error_response, protocol_of
from llmserve.http.middleware import Accounting, Authentication, Failures, RequestId
from llmserve.observability.metrics import Metrics
from llmserve.services import Services
from llmserve.settings import Settings

COUNTED_PATHS = ("/generate", "/generate/stream", *openai.PATHS)
"""Routes whose requests are accounted for."""


def build_services(
    settings: Settings,
    make_engine: MakeEngine | None = None,
    on_change: Callable[[Status], None] = lambda _: None,
) -> Services:
    """Wire the parts. ``make_engine`` replaces the engine the settings ask for."""
    supervisor = Supervisor(make_engine or engine_maker(settings), settings.runtime, on_change)
    gateway = Gateway(
        supervisor,
        Router(settings.model),
        Admission(settings.admission.max_running or 256),
        request_timeout=settings.server.request_timeout_s or None,
    )
    metrics = Metrics(engine=settings.runtime.engine)
    metrics.prepare(gateway.router.names[0], COUNTED_PATHS)
    return Services(
        settings=settings,
        supervisor=supervisor,
        gateway=gateway,
        keys=Keys([key.get_secret_value() for key in settings.auth.api_keys]),
        metrics=metrics,
        started_at=int(time.time()),
    )


def build_app(services: Services) -> FastAPI:
    """The ASGI application. Its lifespan runs the engine."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(services.supervisor.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})
            await services.supervisor.aclose()

    docs = services.settings.server.docs
    app = FastAPI(
        title="llmserve",
        version=__version__,
        lifespan=lifespan,
        middleware=_middleware(services),
        openapi_url="/openapi.json" if docs else None,
        docs_url="/docs" if docs else None,
        redoc_url=None,
    )
    app.state.services = services
    for router in (native.router, openai.build_router(), health.router):
        app.include_router(router)
    app.add_exception_handler(LlmserveError, _on_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    return app


def _middleware(services: Services) -> list[Middleware]:
    """Outermost first."""
    counted = {path: path for path in COUNTED_PATHS}
    stack = [
        Middleware(RequestId),
        Middleware(Accounting, routes=counted, closed=services.metrics.closed),
        Middleware(Failures),
        Middleware(Authentication, keys=services.keys),
    ]
    origins = services.settings.server.cors_origins
    if origins:
        # Before authentication: a browser's preflight request carries no key.
        cors = Middleware(
            CORSMiddleware,
            allow_origins=list(origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after"],
        )
        stack.insert(1, cors)
    return stack


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, LlmserveError)
    entry = getattr(request.state, "entry", None)
    if entry is not None:
        entry.fail(error)
    return error_response(error, protocol_of(request.url.path), request.state.request_id)


async def _on_http_error(request: Request, error: Exception) -> Response:
    """What Starlette itself refuses: paths and methods that do not exist."""
    assert isinstance(error, HTTPException)
    method, path = request.method, request.url.path
    if error.status_code == 404:
        ours: LlmserveError = NotFound(f"There is no {method} {path} here.")
    elif error.status_code == 405:
        ours = MethodNotAllowed(f"{path} does not take {method}.")
    else:
        ours = InvalidRequest(str(error.detail))
    response = await _on_error(request, ours)
    for name, value in (error.headers or {}).items():
        response.headers[name] = value
    return response
