"""Pure ASGI middleware: what every request passes, whatever its route.

RequestId → Accounting → Failures → Authentication → routes
"""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Callable, Mapping

from sse_starlette.sse import SendTimeoutError
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmserve.errors import InternalError, Unauthenticated
from llmserve.gateway.auth import Keys
from llmserve.gateway.entry import Entry, outcome_of_status
from llmserve.http.envelopes import error_response, protocol_of
from llmserve.http.streaming import ClientGone
from llmserve.types import Outcome

log = logging.getLogger(__name__)
access_log = logging.getLogger("llmserve.access")

OPEN_PATHS = frozenset({"/livez", "/health", "/readyz", "/ready", "/healthz"})
"""Paths that need no key: a probe has none to give."""

_CLIENT_ID = re.compile(r"[A-Za-z0-9_.:\-]{1,64}")
_SECURITY_HEADERS = {"x-content-type-options": "nosniff"}


class RequestId:
    """Gives each request an id (the client's own, when it sends a sane ``x-request-id``),
    sends it back, and adds the security headers."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _CLIENT_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                headers.update(_SECURITY_HEADERS)
            await send(message)

        await self.app(scope, receive, send_with_id)


class Accounting:
    """Opens the entry of each request to a counted route and closes it when the response
    has ended, however it ended: exactly one outcome, by construction."""

    def __init__(
        self, app: ASGIApp, *, routes: Mapping[str, str], closed: Callable[[Entry], None]
    ) -> None:
        self.app = app
        self._routes = routes
        self._closed = closed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self._routes.get(scope["path"]) if scope["type"] == "http" else None
        if route is None or scope["method"] == "OPTIONS":
            await self.app(scope, receive, send)
            return
        entry = Entry(id=scope["state"]["request_id"], route=route)
        scope["state"]["entry"] = entry
        status: int | None = None
        complete = False

        async def watch(message: Message) -> None:
            nonlocal status, complete
            if message["type"] == "http.response.start":
                status = message["status"]
            elif not message.get("more_body", False):
                complete = True
            await send(message)

        try:
            await self.app(scope, receive, watch)
        finally:
            if status is not None and status < 400 and not complete:
                entry.end(Outcome.DISCONNECTED)
            entry.end(outcome_of_status(status))
            self._closed(entry)
            _log_access(scope, entry, status)


class Authentication:
    """Denies every path that is not open, unless the request carries a valid key."""

    def __init__(self, app: ASGIApp, *, keys: Keys) -> None:
        self.app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or scope["path"] in OPEN_PATHS:
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            caller = self._keys.authenticate(headers.get("authorization"), headers.get("x-api-key"))
        except Unauthenticated as error:
            response = error_response(error, protocol_of(scope["path"]), _request_id(scope))
            await response(scope, receive, send)
            return
        entry = scope.get("state", {}).get("entry")
        if entry is not None:
            entry.caller = caller
        await self.app(scope, receive, send)


class Failures:
    """The last net: whatever a route lets through becomes a plain 500 without a word
    about its cause, which goes to the log."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def watch(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, watch)
        except ClientGone:
            _end(scope, Outcome.DISCONNECTED)
        except SendTimeoutError:
            _end(scope, Outcome.DISCONNECTED)
            log.warning("request %s: the client stopped reading", _request_id(scope))
        except Exception:
            log.exception("request %s failed", _request_id(scope))
            _end(scope, Outcome.FAILED)
            if started:
                raise
            error = InternalError()
            response = error_response(error, protocol_of(scope["path"]), _request_id(scope))
            await response(scope, receive, send)


def _end(scope: Scope, outcome: Outcome) -> None:
    entry = scope["state"].get("entry")
    if entry is not None:
        entry.end(outcome)


def _request_id(scope: Scope) -> str:
    return str(scope.get("state", {}).get("request_id", ""))


def _log_access(scope: Scope, entry: Entry, status: int | None) -> None:
    access_log.info(
        "%s %s %s %s %s %.3fs %d+%d tokens",
        entry.id,
        entry.caller.name,
        entry.route,
        status if status is not None else "-",
        entry.outcome,
        time.monotonic() - entry.started,
        entry.meter.prompt_tokens,
        entry.meter.completion_tokens,
        extra={"method": scope["method"]},
    )
