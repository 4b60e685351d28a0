"""The head of a request as the parser hands it over: what is wrong with it, and the answer
to one that is refused before any route is chosen."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from llmserve.errors import InvalidRequest, LlmserveError
from llmserve.http.envelopes import error_response, protocol_of

Headers = Sequence[tuple[bytes, bytes]]

_VERSIONS = ("1.1", "1.0")
_TARGETS = (b"/", b"http://", b"https://")
_HOST = re.compile(rb"[A-Za-z0-9.\-_~%!$&'()*+,;=\[\]:]+")
_ONCE = (b"host", b"content-type", b"authorization", b"x-api-key", b"transfer-encoding")


def check_head(version: str, target: bytes, headers: Headers) -> None:
    """Refuse what the parser lets through and two servers may read differently: request
    smuggling lives on that (RFC 9112, sections 3.2 and 11.2). The names of ``headers`` are
    in lower case. Raises ``InvalidRequest``."""
    if version not in _VERSIONS:
        raise InvalidRequest("Only HTTP/1.1 and HTTP/1.0 are spoken here.")
    if not target.startswith(_TARGETS):
        raise InvalidRequest("The target of the request must be a path.")
    by_name = dict(headers)
    if len(by_name) < len(headers):
        names = [name for name, _ in headers]
        for name in _ONCE:
            if names.count(name) > 1:
                raise InvalidRequest(f"The header {name.decode()} stands there twice.")
    # Old health checks speak HTTP/1.0, which knows no such header.
    if not _HOST.fullmatch(by_name.get(b"host", b"x" if version == "1.0" else b"")):
        raise InvalidRequest("The header host must be a host name with an optional port.")
    coding = by_name.get(b"transfer-encoding")
    if coding is not None and (coding.lower() != b"chunked" or version == "1.0"):
        raise InvalidRequest("The header transfer-encoding can only be chunked, in HTTP/1.1.")


def head_size(target: bytes, headers: Headers) -> int:
    """Bytes of a head on the wire, the ends of the request line aside."""
    return len(target) + sum(len(name) + len(value) + 4 for name, value in headers)


def path_of(target: bytes) -> str:
    """The path of a request target, whole or not, for choosing an envelope."""
    path = str(target.partition(b"?")[0].decode("latin-1"))
    if path.startswith("/"):
        return path
    return "/" + path.partition("://")[2].partition("/")[2]


def reason(error: httptools.HttpParserError) -> LlmserveError:
    """Why parsing ended, in our words."""
    cause = error.__context__
    if isinstance(cause, LlmserveError):
        return cause
    # The parser's reasons are fixed phrases; what Python says of a bad target repeats it.
    detail = "" if isinstance(error, httptools.HttpParserCallbackError) else f": {error}"
    return InvalidRequest(f"This is no valid HTTP request{detail[:100]}.", code="invalid_http")


def refusal(error: LlmserveError, path: str, default: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The last response of a connection, as it goes over the wire."""
    response = error_response(error, protocol_of(path))
    headers = [
        *default,
        *response.raw_headers,
        (b"x-content-type-options", b"nosniff"),
        (b"connection", b"close"),
    ]
    lines = [name + b": " + value + b"\r\n" for name, value in headers]
    return b"".join((STATUS_LINE[error.status], *lines, b"\r\n", bytes(response.body)))
