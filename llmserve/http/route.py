"""Routes whose handlers do everything themselves: they take the request and return the
response, and raise nothing but ``LlmserveError`` and ``ClientGone``.

FastAPI documents them. ``Straight`` takes their requests to them by path, past the router
and the layers around it, which are for parameters, results and exceptions of all kinds and
cost as much as the policies of a request.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from typing import Any

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from llmserve.errors import LlmserveError
from llmserve.http.turnstile import Turnstile

Handler = Callable[[Request], Awaitable[Response]]


class DirectRoute(APIRoute):
    """A route in FastAPI's document, without its machinery for parameters and results."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        return self.endpoint


def direct_handlers(routes: Iterable[BaseRoute]) -> dict[str, Handler]:
    """The handlers of all direct routes without parameters, by path. They take POST only."""
    return {
        route.path: route.endpoint
        for route in routes
        if isinstance(route, DirectRoute)
        and route.methods == {"POST"}
        and not route.param_convertors
    }


class Straight:
    """The innermost middleware. ``handlers`` is asked when a request comes: the
    application is not complete before. Requests go on in turns (``Turnstile``), once it is
    known that they may."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        handlers: Callable[[], Mapping[str, Handler]],
        on_error: Callable[[Request, LlmserveError], Awaitable[Response]],
    ) -> None:
        self.app = app
        self._handlers = handlers
        self._on_error = on_error
        self._turnstile = Turnstile()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        plain = scope["type"] == "http" and scope["method"] == "POST"
        handler = self._handlers().get(scope["path"]) if plain else None
        if handler is None:
            await self.app(scope, receive, send)
            return
        await self._turnstile.enter()
        response = await self._response(handler, Request(scope, receive, send))
        await response(scope, receive, send)

    async def _response(self, handler: Handler, request: Request) -> Response:
        try:
            return await handler(request)
        except LlmserveError as error:
            return await self._on_error(request, error)
