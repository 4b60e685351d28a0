"""Errors on the wire: one envelope for each protocol."""

from __future__ import annotations

import math
from enum import Enum
from typing import Any

import msgspec
from starlette.responses import Response

from llmserve.errors import LlmserveError, Unauthenticated
from llmserve.types import Operation


class Protocol(Enum):
    """Whose words a route speaks."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"


_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


encode = msgspec.json.Encoder().encode
"""JSON as bytes."""

_MAX_RETRY_SECONDS = 60.0


def protocol_of(path: str) -> Protocol:
    """The protocol of a path; everything that is not Anthropic's speaks OpenAI's."""
    return Protocol.ANTHROPIC if path.startswith("/v1/messages") else Protocol.OPENAI


def error_body(error: LlmserveError, protocol: Protocol, request_id: str = "") -> dict[str, Any]:
    """The JSON that tells a client of an error."""
    if protocol is Protocol.ANTHROPIC:
        fallback = "invalid_request_error" if error.status < 500 else "api_error"
        body: dict[str, Any] = {
            "type": "error",
            "error": {
                "type": _ANTHROPIC_TYPES.get(error.status, fallback),
                "message": error.message,
            },
        }
        return body | ({"request_id": request_id} if request_id else {})
    return {
        "error": {
            "message": error.message,
            "type": error.type,
            "param": error.param,
            "code": error.code,
        }
    }


def error_response(error: LlmserveError, protocol: Protocol, request_id: str = "") -> Response:
    """The response that tells a client of an error."""
    headers = {}
    if error.retry_after is not None:
        # Beyond a minute the SDKs ignore it and come back much too soon. They read the finer
        # one; whole seconds are for everybody else.
        most = math.inf if error.retryable is False else _MAX_RETRY_SECONDS
        seconds = min(error.retry_after, most)
        headers["retry-after"] = str(max(1, math.ceil(seconds)))
        headers["retry-after-ms"] = str(math.ceil(seconds * 1000))
    if error.retryable is not None:
        headers["x-should-retry"] = "true" if error.retryable else "false"
    if isinstance(error, Unauthenticated):
        headers["www-authenticate"] = 'Bearer realm="llmserve"'
    return json_response(
        error_body(error, protocol, request_id), status=error.status, headers=headers
    )


def json_response(
    body: Any, *, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """A JSON response."""
    content = encode(body)
    return Response(content, status, headers=headers, media_type="application/json")


def error_event(error: LlmserveError, operation: Operation | None) -> bytes:
    """The server-sent event by which a stream that has begun ends in an error."""
    if operation is Operation.MESSAGES:
        return sse(error_body(error, Protocol.ANTHROPIC), "error")
    if operation is Operation.RESPONSES:
        body = {
            "type": "error",
            "code": error.code or error.type,
            "message": error.message,
            "param": error.param,
        }
        return sse(body, "error")
    return sse(error_body(error, Protocol.OPENAI))


def sse(data: Any, event: str | None = None) -> bytes:
    """One server-sent event as it goes over the wire."""
    payload = b"data: " + encode(data) + b"\n\n"
    return payload if event is None else b"event: " + event.encode() + b"\n" + payload
