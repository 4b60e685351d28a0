"""Pure ASGI middleware: what every request passes, whatever its route.

RequestId → (CORS) → Accounting → Failures → Authentication → (route.Straight) → routes

Where nothing is to be done after the response, there is no coroutine: each one costs every
idle stream memory.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from llmserve.errors import Forbidden, InternalError, LlmserveError, NotFound, Unauthenticated
from llmserve.gateway.entry import Entry, outcome_of_status
from llmserve.http.context import header, identify
from llmserve.http.departure import ClientGone
from llmserve.http.envelopes import error_response, protocol_of
from llmserve.http.event_stream import ReaderStalled
from llmserve.http.lent import lent_to
from llmserve.http.policies import Guide, Policy
from llmserve.http.reply import reply_of, watch
from llmserve.settings import AuthSettings, is_loopback
from llmserve.state.authenticator import Authenticator
from llmserve.types import Caller, Outcome

log = logging.getLogger(__name__)
access_log = logging.getLogger("llmserve.access")

_CLIENT_ID = re.compile(r"[A-Za-z0-9_.:\-]{1,64}")


class RequestId:
    """Gives each request an id (the client's own, when it sends a sane ``x-request-id``)
    and its ``Reply``, which sends it back."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] != "http":
            return self.app(scope, receive, send)
        given = header(scope, b"x-request-id") or ""
        request_id = given if _CLIENT_ID.fullmatch(given) else secrets.token_hex(16)
        scope.setdefault("state", {})["request_id"] = request_id
        return self.app(scope, receive, watch(scope, send))


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
        try:
            await self.app(scope, receive, send)
        finally:
            reply = reply_of(scope)
            status = reply.status
            if status is not None and status < 400 and not reply.complete:
                entry.end(Outcome.DISCONNECTED)
            entry.end(outcome_of_status(status))
            self._closed(entry)
            _log_access(scope, entry, status)


class Authentication:
    """Denies every path that its policy does not open, unless the request carries a key
    that opens it."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        authenticator: Authenticator,
        settings: AuthSettings,
        origins: Sequence[str],
        guide: Callable[[], Guide],
    ) -> None:
        self.app = app
        self._authenticator = authenticator
        self._settings = settings
        self._origins = frozenset(origins)
        self._guide = guide

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] != "http":
            return self.app(scope, receive, send)
        try:
            query_key = self._take_query_key(scope) if self._settings.allow_query_key else None
            policy = self._guide().policy(scope["path"])
            caller = None
            if not policy.opened(self._settings):
                caller = self._authenticate(scope, query_key, policy)
        except (Unauthenticated, Forbidden, NotFound) as error:
            _fail(scope, error)
            response = error_response(error, protocol_of(scope["path"]), _request_id(scope))
            return response(scope, receive, send)
        if caller is not None:
            identify(scope, caller)
        return self.app(scope, receive, send)

    def _authenticate(self, scope: Scope, query_key: str | None, policy: Policy) -> Caller:
        self._check_origin(header(scope, b"origin"))
        caller = self._authenticator.authenticate(
            header(scope, b"authorization"), header(scope, b"x-api-key"), query_key
        )
        if policy.scopes and policy.scopes.isdisjoint(caller.scopes):
            needed = " or ".join(sorted(scope.value for scope in policy.scopes))
            raise Forbidden(f"This API key lacks the scope that this route needs: {needed}.")
        return caller

    def _check_origin(self, origin: str | None) -> None:
        """Without keys, a loopback server is open to whoever is on this machine, and that
        does not mean every page that somebody has open in a browser here: a page can reach
        us under a name of its own that leads to 127.0.0.1."""
        if origin is None or self._authenticator.required or self._settings.allow_anonymous_network:
            return
        if origin not in self._origins and not is_loopback(urlsplit(origin).hostname or ""):
            raise Forbidden(
                f"Pages from {origin[:100]!r} may not call this server: there is no API key, "
                "and server.cors_origins does not name them.",
                code="origin_not_allowed",
            )

    @staticmethod
    def _take_query_key(scope: Scope) -> str | None:
        """The key in the query string, which is taken out: nothing behind may log it."""
        pairs: list[tuple[str, str]] = parse_qsl(
            scope["query_string"].decode("latin-1"), keep_blank_values=True
        )
        rest = [pair for pair in pairs if pair[0] != "api_key"]
        if len(rest) == len(pairs):
            return None
        scope["query_string"] = urlencode(rest).encode("latin-1")
        keys = {value for name, value in pairs if name == "api_key"}
        if len(keys) > 1:
            raise Unauthenticated("The request carries two different API keys; send one.")
        return keys.pop()


class Failures:
    """The last net: whatever a route lets through becomes a plain 500 without a word
    about its cause, which goes to the log."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            await self.app(scope, receive, send)
        except ClientGone:
            _end(scope, Outcome.DISCONNECTED)
        except ReaderStalled:
            _end(scope, Outcome.DISCONNECTED)
            log.warning("request %s: the client stopped reading", _request_id(scope))
            # A plain return would wait for the client to take what is left, and log an error.
            lent = lent_to(scope)
            if lent is not None:
                lent.hang_up()
        except Exception:
            log.exception("request %s failed", _request_id(scope))
            _end(scope, Outcome.FAILED)
            if reply_of(scope).status is not None:
                raise
            error = InternalError()
            response = error_response(error, protocol_of(scope["path"]), _request_id(scope))
            await response(scope, receive, send)


def _end(scope: Scope, outcome: Outcome) -> None:
    entry = scope["state"].get("entry")
    if entry is not None:
        entry.end(outcome)


def _fail(scope: Scope, error: LlmserveError) -> None:
    entry = scope["state"].get("entry")
    if entry is not None:
        entry.fail(error)


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
