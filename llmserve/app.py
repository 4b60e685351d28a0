"""The composition root: what the server is made of, in one place."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from llmserve import __version__
from llmserve.catalog.catalog import Catalog
from llmserve.engine.factory import engine_maker
from llmserve.engine.supervisor import MakeEngine, Status, Supervisor
from llmserve.errors import InvalidRequest, LlmserveError, MethodNotAllowed, NotFound
from llmserve.gateway.entry import Entry
from llmserve.gateway.gateway import Gateway
from llmserve.gateway.routing import Router
from llmserve.http import health, native, openai, requests
from llmserve.http.envelopes import error_response, protocol_of
from llmserve.http.middleware import Accounting, Authentication, Failures, RequestId
from llmserve.http.models import build_router as models_router
from llmserve.http.policies import Guide
from llmserve.http.route import Handler, Straight, direct_handlers
from llmserve.observability.metrics import Metrics
from llmserve.services import Services
from llmserve.settings import Settings
from llmserve.state import Authenticator, UsageWriter, open_store, open_windows
from llmserve.types import Outcome

_EXPOSED = [
    *("x-request-id", "retry-after", "retry-after-ms", "x-should-retry", "x-cache"),
    *(
        f"x-ratelimit-{what}-{of}"
        for what in ("limit", "remaining", "reset")
        for of in ("requests", "tokens")
    ),
]
"""Headers that a browser shows to a page from another origin."""

COUNTED_PATHS = ("/generate", "/generate/stream", *openai.PATHS)
"""Routes whose requests are accounted for."""


def build_services(
    settings: Settings,
    make_engine: MakeEngine | None = None,
    on_change: Callable[[Status], None] = lambda _: None,
    *,
    state_path: Path,
) -> Services:
    """Wire the parts. ``make_engine`` replaces the engine the settings ask for;
    ``state_path`` is the SQLite file when the settings name no store. Raises
    ``ConfigError`` when the store cannot be opened."""
    store = open_store(settings.state, state_path)
    windows = open_windows(settings.state, store)
    supervisor = Supervisor(make_engine or engine_maker(settings), settings.runtime, on_change)
    gateway = Gateway(settings, supervisor, Router(settings.model), windows)
    metrics = Metrics(engine=settings.runtime.engine)
    metrics.prepare(gateway.router.names[0], COUNTED_PATHS)
    static = [key.get_secret_value() for key in settings.auth.api_keys]
    return Services(
        settings=settings,
        supervisor=supervisor,
        gateway=gateway,
        store=store,
        authenticator=Authenticator(store, static),
        usage=UsageWriter(store),
        windows=windows,
        metrics=metrics,
        catalog=Catalog(settings),
        started_at=int(time.time()),
    )


class Application(FastAPI):
    """FastAPI inside our own layers: what they pass on to a direct route sees nothing of it.
    The outermost is first. Servers have to be told that it is an ASGI 3 application: it has
    no coroutine of its own, which every stream would keep."""

    def __init__(self, layers: list[Middleware], **options: Any) -> None:
        super().__init__(**options)
        self._layers = layers

    def build_middleware_stack(self) -> ASGIApp:
        app = super().build_middleware_stack()
        for cls, args, kwargs in reversed(self._layers):
            app = cls(app, *args, **kwargs)
        return app

    def __call__(  # type: ignore[override]  # as good as a coroutine function, for callers
        self, scope: Scope, receive: Receive, send: Send
    ) -> Awaitable[None]:
        scope["app"] = self
        if self.middleware_stack is None:
            self.middleware_stack = self.build_middleware_stack()
        return self.middleware_stack(scope, receive, send)


def build_app(services: Services) -> FastAPI:
    """The ASGI application. Its lifespan runs the engine and the keeping of state."""
    docs = services.settings.server.docs
    app = Application(
        _middleware(services, lambda: guide, lambda: handlers),
        title="llmserve",
        version=__version__,
        lifespan=lambda _: _running(services),
        openapi_url="/openapi.json" if docs else None,
        docs_url="/docs" if docs else None,
        redoc_url=None,
    )
    app.state.services = services
    for router in (native.router, openai.build_router(), requests.router, health.router):
        app.include_router(router)
    app.include_router(models_router(services.catalog))
    guide, handlers = Guide(app.routes), direct_handlers(app.routes)
    app.add_exception_handler(LlmserveError, _on_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    return app


@contextlib.asynccontextmanager
async def _running(services: Services) -> AsyncIterator[None]:
    await services.windows.open()
    tasks = [
        asyncio.create_task(services.supervisor.run()),
        asyncio.create_task(services.authenticator.keep_fresh()),
        asyncio.create_task(services.usage.keep_writing()),
    ]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await services.supervisor.aclose()
        await services.usage.aclose()
        await services.windows.aclose()
        await asyncio.to_thread(services.store.close)
        await services.catalog.aclose()


def _middleware(
    services: Services, guide: Callable[[], Guide], handlers: Callable[[], Mapping[str, Handler]]
) -> list[Middleware]:
    """Outermost first."""
    counted = {path: path for path in COUNTED_PATHS}

    def closed(entry: Entry) -> None:
        services.metrics.closed(entry)
        account(services.usage, entry)

    stack = [
        Middleware(RequestId),
        Middleware(Accounting, routes=counted, closed=closed),
        Middleware(Failures),
        Middleware(
            Authentication,
            authenticator=services.authenticator,
            settings=services.settings.auth,
            origins=services.settings.server.cors_origins,
            guide=guide,
        ),
        Middleware(Straight, handlers=handlers, on_error=_on_error),
    ]
    origins = services.settings.server.cors_origins
    if origins:
        # Before authentication: a browser's preflight request carries no key.
        cors = Middleware(
            CORSMiddleware,
            allow_origins=list(origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=_EXPOSED,
        )
        stack.insert(1, cors)
    return stack


def account(usage: UsageWriter, entry: Entry) -> None:
    """What the caller used. The engine did nothing for an answer from the cache."""
    outcome, meter = entry.outcome or Outcome.FAILED, entry.meter
    used = (meter.prompt_tokens, meter.cached_tokens, meter.completion_tokens)
    usage.add(entry.caller.id, entry.model, outcome, *((0, 0, 0) if entry.from_cache else used))


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, LlmserveError)
    entry = getattr(request.state, "entry", None)
    if entry is not None:
        entry.fail(error)
    return error_response(error, protocol_of(request.url.path), request.state.request_id)


async def _on_http_error(request: Request, error: Exception) -> Response:
    """What Starlette itself refuses: paths and methods that do not exist."""
    assert isinstance(error, HTTPException)
    method, path = request.method, request.url.path[:200]
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
