"""Reading a JSON request body: bounded in size, time and depth, off the event loop when
it is large."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
from starlette.requests import ClientDisconnect, Request

from llmserve.errors import (
    BodyTooLarge,
    Draining,
    InvalidRequest,
    RequestTimeout,
    UnsupportedMediaType,
)
from llmserve.http.context import header
from llmserve.http.departure import ClientGone
from llmserve.http.lent import lent_to
from llmserve.settings import LimitSettings

_LARGE = 128 * 1024
# The closing quote is optional and nothing backtracks, so hostile bodies cost linear time.
_KEY_END = re.compile(rb'"[ \t\r\n]*+:')
_ESCAPED_KEY_END = re.compile(rb'\\"[ \t\r\n]*+:')
_TOKENS = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[\]{}]', re.DOTALL)


async def read_json(request: Request, limits: LimitSettings, timeout_s: float) -> dict[str, Any]:
    """The body as a JSON object. Raises ``UnsupportedMediaType``, ``BodyTooLarge``,
    ``RequestTimeout``, ``InvalidRequest``; ``Draining`` when the server ends before the
    body has arrived."""
    _check_type(request)
    body = await _read(request, limits.max_body_bytes, timeout_s)
    request.state.body_bytes = len(body)
    if len(body) > _LARGE:
        return await asyncio.to_thread(decode_object, body, limits.max_json_depth)
    return decode_object(body, limits.max_json_depth)


def decode_object(body: bytes | bytearray, max_depth: int) -> dict[str, Any]:
    """Decode a JSON object no deeper than ``max_depth``, and without a key that stands
    twice in its object: who inspects it before us may take the other one. Raises
    ``InvalidRequest``."""
    if not body:
        raise InvalidRequest("The body is empty; it must be a JSON object.", code="invalid_json")
    _check_depth(body, max_depth)
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(
            f"The body is not valid JSON: {_fault(body, error)}.", code="invalid_json"
        ) from error
    if not isinstance(value, dict):
        raise InvalidRequest(
            f"The body must be a JSON object, not {_name(value)}.", code="invalid_json"
        )
    _check_keys(body, value)
    return value


def _fault(body: bytes | bytearray, error: Exception) -> str:
    """What is wrong. Of a byte that is no UTF-8 msgspec says where it is in its string (until
    0.22) or only that there is one; people look for it in the body."""
    try:
        body.decode()
    except UnicodeDecodeError as wrong:
        return f"the byte at {wrong.start} is not UTF-8"
    return str(error)


def _check_type(request: Request) -> None:
    given = (header(request.scope, b"content-type") or "").partition(";")[0].strip().lower()
    if not given:
        raise UnsupportedMediaType("Content-Type is missing; it must be application/json.")
    if given != "application/json" and not given.endswith("+json"):
        raise UnsupportedMediaType(f"Content-Type must be application/json, not {given[:80]!r}.")
    coding = (header(request.scope, b"content-encoding") or "identity").strip().lower()
    if coding != "identity":
        raise UnsupportedMediaType(f"Content-Encoding is {coding[:40]!r}; only identity is taken.")


async def _read(request: Request, most: int, timeout_s: float) -> bytes | bytearray:
    declared = header(request.scope, b"content-length") or ""
    if declared.isdecimal() and int(declared) > most:
        raise _too_large(most)
    lent = lent_to(request.scope)
    if lent is None or not lent.has_arrived():
        return await _wait_for(request, most, timeout_s)
    message = await request.receive()
    if message["type"] != "http.request":
        raise ClientGone
    whole: bytes = message["body"]
    if len(whole) > most:
        raise _too_large(most)
    return whole


async def _wait_for(request: Request, most: int, timeout_s: float) -> bytearray:
    body = bytearray()
    limit = asyncio.timeout(timeout_s or None)
    try:
        with _interruptible(request, limit):
            async with limit:
                async for part in request.stream():
                    if len(body) + len(part) > most:
                        raise _too_large(most)
                    body += part
    except TimeoutError as error:
        raise RequestTimeout(f"The body did not arrive within {timeout_s:g} s.") from error
    except ClientDisconnect as error:
        raise ClientGone from error
    return body


@contextmanager
def _interruptible(request: Request, limit: asyncio.Timeout) -> Iterator[None]:
    """For as long as the body is waited for, the connection can end that
    (``connection.Connection.shutdown``): raises ``Draining`` then."""
    leaving = False

    def interrupt() -> None:
        nonlocal leaving
        leaving = True
        limit.reschedule(0)

    lent = lent_to(request.scope)
    if lent is None:
        yield
        return
    if lent.leaving:
        raise _leaving()
    lent.interrupt = interrupt
    try:
        yield
    except TimeoutError as error:
        if not leaving:
            raise
        raise _leaving() from error
    finally:
        lent.interrupt = None


def _leaving() -> Draining:
    return Draining("The server is shutting down; the body had not arrived yet.")


def _too_large(most: int) -> BodyTooLarge:
    return BodyTooLarge(f"The body is larger than the limit of {most} bytes.")


def _check_keys(body: bytes | bytearray, value: dict[str, Any]) -> None:
    """The decoder keeps the last of two equal keys. Every key ends in a quote and a colon:
    where as many keys are left as were written, none was lost. The text of a string can
    look the same; in doubt a slower decoder has the last word."""
    written = len(_KEY_END.findall(body))
    if b"\\" in body:
        written -= len(_ESCAPED_KEY_END.findall(body))
        if b'\\\\"' in body:
            written = -1
    if written != _count_keys(value, body.count(b"{")):
        json.loads(body, object_pairs_hook=_refuse_twice)


def _count_keys(value: dict[str, Any], objects: int) -> int:
    """The keys of all objects in ``value``; there are at most ``objects`` of them."""
    keys = 0
    stack: list[Any] = [value]
    while stack and objects:
        item = stack.pop()
        if type(item) is dict:
            objects -= 1
            keys += len(item)
            item = item.values() if objects else ()
        for inner in item:
            if type(inner) is dict or type(inner) is list:
                stack.append(inner)
    return keys


def _refuse_twice(pairs: list[tuple[str, Any]]) -> None:
    seen = set()
    for key, _ in pairs:
        if key in seen:
            raise InvalidRequest(
                f"The field {key[:80]!r} stands twice in one object.",
                param=key[:80],
                code="invalid_json",
            )
        seen.add(key)


def _check_depth(body: bytes | bytearray, max_depth: int) -> None:
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
