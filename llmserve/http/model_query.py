"""The query parameters of ``/models``: unknown ones are refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request

from llmserve.errors import InvalidRequest
from llmserve.modelfile import SORTS, parse_bytes
from llmserve.modelfile.memory import Dtype

NOTHING: tuple[str, ...] = ()
LIST = ("name", "limit", "offset")
TENSORS = ("name", "dtype", "sort", "order", "limit", "offset")
ESTIMATE = ("memory", "tp", "context", "sequences", "dtype", "kv", "device")

_PAGE = 100
_MOST = 1000
_MAX_MEMORY = 1 << 60
_MAX_DEVICES = 1024
_MAX_TEXT = 200


def parse(request: Request, allowed: tuple[str, ...]) -> dict[str, str]:
    """Each parameter once. Raises ``InvalidRequest``."""
    found: dict[str, str] = {}
    for key, value in request.query_params.multi_items():
        if key not in allowed:
            choice = f"allowed are {', '.join(allowed)}" if allowed else "none is allowed"
            raise _wrong(key[:40], f"There is no query parameter {key[:40]!r} here; {choice}.")
        if key in found:
            raise _wrong(key, f"The query parameter {key} was given twice.")
        if len(value) > _MAX_TEXT:
            raise _wrong(key, f"{key} is longer than {_MAX_TEXT} characters.")
        found[key] = value
    return found


def page_args(values: Mapping[str, str]) -> tuple[int, int]:
    """Offset and limit."""
    offset = _number(values, "offset", 0, 10**9, low=0)
    return offset or 0, _number(values, "limit", _PAGE, _MOST) or _PAGE


def tensor_args(request: Request) -> dict[str, Any]:
    """Arguments of ``modelfile.query``."""
    values = parse(request, TENSORS)
    sort = _choice(values, "sort", tuple(SORTS))
    order = _choice(values, "order", ("asc", "desc"))
    offset, limit = page_args(values)
    args = {"name": values.get("name"), "dtype": values.get("dtype"), "sort": sort}
    return {**args, "descending": order == "desc", "offset": offset, "limit": limit}


def estimate_args(request: Request) -> dict[str, Any]:
    """Arguments of ``modelfile.estimate.Ask``; without ``memory_bytes``, of this machine."""
    values = parse(request, ESTIMATE)
    args: dict[str, Any] = {
        "tensor_parallel": _number(values, "tp", 1, _MAX_DEVICES),
        "context": _number(values, "context", None, 10**9),
        "sequences": _number(values, "sequences", 1, 10**6),
        "dtype": _choice(values, "dtype", tuple(each.value for each in Dtype)) or Dtype.BF16.value,
        "kv_bytes": 1 if _choice(values, "kv", ("auto", "fp8")) == "fp8" else 2,
    }
    device = _choice(values, "device", ("gpu", "cpu"))
    if "memory" in values:
        args |= {"memory_bytes": _memory(values["memory"]), "gpu": device != "cpu"}
    elif device is not None:
        raise _wrong("device", "device goes with memory; without both, it is this machine.")
    return args


def _memory(text: str) -> int:
    try:
        size = parse_bytes(text)
    except ValueError as error:
        raise _wrong("memory", f"memory is {text[:40]!r}: {error}") from error
    if not 0 < size <= _MAX_MEMORY:
        raise _wrong("memory", f"memory is {text[:40]!r}; it must be above 0, and not absurd.")
    return size


def _number(
    values: Mapping[str, str], key: str, default: int | None, most: int, *, low: int = 1
) -> int | None:
    text = values.get(key)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 20 and low <= int(text) <= most):
        raise _wrong(key, f"{key} is {text[:40]!r}; it must be a whole number, {low} to {most}.")
    return int(text)


def _choice(values: Mapping[str, str], key: str, choices: tuple[str, ...]) -> str | None:
    text = values.get(key)
    if text is not None and text not in choices:
        raise _wrong(key, f"{key} is {text[:40]!r}; it must be one of {', '.join(choices)}.")
    return text


def _wrong(key: str, message: str) -> InvalidRequest:
    return InvalidRequest(message, param=key)
