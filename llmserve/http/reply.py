"""What goes out for a request: headers that every answer has, and how far it got."""

from __future__ import annotations

from typing import cast

from starlette.types import Message, Scope, Send

_SECURITY = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]
_CSP = b"default-src 'none'; frame-ancestors 'none'"
_DOCS_CSP = (
    b"default-src 'none'; frame-ancestors 'none'; connect-src 'self'; "
    b"script-src 'unsafe-inline' https://cdn.jsdelivr.net; "
    b"style-src 'unsafe-inline' https://cdn.jsdelivr.net; "
    b"img-src 'self' data: https://fastapi.tiangolo.com"
)
_HEADERS = [*_SECURITY, (b"content-security-policy", _CSP)]
_DOCS_HEADERS = [*_SECURITY, (b"content-security-policy", _DOCS_CSP)]
_KEY = "reply"


class Reply:
    """The outermost ``send`` of a request, for all layers to look at: one object, because
    a wrapper of each layer's would cost every message a call and every idle stream memory.
    ``status``: what was sent; ``complete``: nothing is missing any more."""

    __slots__ = ("_scope", "_send", "complete", "status")

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope = scope
        self._send = send
        self.status: int | None = None
        self.complete = False

    async def send(self, message: Message) -> None:
        """As ASGI's."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = self._with_ours(message["headers"])
        elif not message.get("more_body", False):
            self.complete = True
        await self._send(message)

    def _with_ours(self, given: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        scope, state = self._scope, self._scope["state"]
        ours = _DOCS_HEADERS if scope["path"].startswith("/docs") else _HEADERS
        headers = [*given, *ours, (b"x-request-id", state["request_id"].encode())]
        entry = state.get("entry")
        if entry is not None:
            headers += [(name.encode(), value.encode()) for name, value in entry.headers.items()]
        if all(name != b"cache-control" for name, _ in headers):
            headers.append((b"cache-control", b"no-store"))
        return headers


def watch(scope: Scope, send: Send) -> Send:
    """The ``send`` of a request from now on."""
    reply = scope["state"][_KEY] = Reply(scope, send)
    return reply.send


def reply_of(scope: Scope) -> Reply:
    """What has gone out for a request."""
    return cast(Reply, scope["state"][_KEY])
