"""Reading a JSON request body: bounded in size, time and depth, off the event loop when
it is large."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import msgspec
from starlette.requests import ClientDisconnect, Request

from llmserve.errors import BodyTooLarge, InvalidRequest, RequestTimeout, UnsupportedMediaType
from llmserve.http.streaming import ClientGone
from llmserve.settings import LimitSettings

_LARGE = 128 * 1024
# The closing quote is optional and nothing backtracks, so hostile bodies cost linear time.
_TOKENS = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[\]{}]', re.DOTALL)


async def read_json(request: Request, limits: LimitSettings, timeout_s: float) -> dict[str, Any]:
    """The body as a JSON object. Raises ``UnsupportedMediaType``, ``BodyTooLarge``,
    ``RequestTimeout``, ``InvalidRequest``."""
    _check_type(request)
    body = await _read(request, limits.max_body_bytes, timeout_s)
    request.state.body_bytes = len(body)
    if len(body) > _LARGE:
        return await asyncio.to_thread(decode_object, body, limits.max_json_depth)
    return decode_object(body, limits.max_json_depth)


def decode_object(body: bytes, max_depth: int) -> dict[str, Any]:
    """Decode a JSON object no deeper than ``max_depth``. Raises ``InvalidRequest``."""
    _check_depth(body, max_depth)
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(
            f"The body is not valid JSON: {error}.", code="invalid_json"
        ) from error
    if not isinstance(value, dict):
        raise InvalidRequest(
            f"The body must be a JSON object, not {_name(value)}.", code="invalid_json"
        )
    return value


def _check_type(request: Request) -> None:
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given != "application/json" and not given.endswith("+json"):
        raise UnsupportedMediaType(
            f"Content-Type must be application/json, not {given or 'absent'!r}."
        )


async def _read(request: Request, most: int, timeout_s: float) -> bytes:
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > most:
        raise _too_large(most)
    parts, size = [], 0
    try:
        async with asyncio.timeout(timeout_s or None):
            async for part in request.stream():
                size += len(part)
                if size > most:
                    raise _too_large(most)
                parts.append(part)
    except TimeoutError as error:
        raise RequestTimeout(f"The body did not arrive within {timeout_s:g} s.") from error
    except ClientDisconnect as error:
        raise ClientGone from error
    return b"".join(parts)


def _too_large(most: int) -> BodyTooLarge:
    return BodyTooLarge(f"The body is larger than the limit of {most} bytes.")


def _check_depth(body: bytes, max_depth: int) -> None:
    """Before decoding: a decoder would have to recurse to find out."""
    if body.count(b"[") + body.count(b"{") <= max_depth:
        return
    depth = 0
    for match in _TOKENS.finditer(body):
        first = match[0][0]
        if first in b"[{":
            depth += 1
            if depth > max_depth:
                raise InvalidRequest(
                    f"The body is nested deeper than the limit of {max_depth} levels.",
                    code="invalid_json",
                )
        elif first in b"]}":
            depth -= 1


def _name(value: Any) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
