"""Checks of single JSON values: type, range, length. Each is a function of the value, the
path that names it in messages, and the limits; it returns nothing or raises."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from typing import Any, TypeAlias

from llmserve.engine.grammars import check_schema
from llmserve.errors import InvalidRequest, Unsupported
from llmserve.settings import LimitSettings

Check: TypeAlias = Callable[[Any, str, LimitSettings], None]
Bound: TypeAlias = int | Callable[[LimitSettings], int]

MAX_INT32 = 2**31 - 1
MAX_INT64 = 2**63 - 1
_SHOWN_CHARS = 60


def show(value: Any) -> str:
    """A value as an error message shows it: short, one line, whatever it is."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return f"an array of {len(value)}"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int) and value.bit_length() > 128:
        return "a huge integer"
    if isinstance(value, str) and len(value) > _SHOWN_CHARS:
        return f"{value[:_SHOWN_CHARS]!r}… ({len(value)} characters)"
    return repr(value)


def wrong(path: str, value: Any, allowed: str) -> InvalidRequest:
    """The error for a value that is not what the field takes."""
    return InvalidRequest(f"{path} must be {allowed}, not {show(value)}.", param=path)


def unsupported_value(path: str, value: Any, allowed: str) -> Unsupported:
    """The error for a value that the protocol knows and this server does not do."""
    return Unsupported(
        f"{path}: {show(value)} is not supported; {allowed}.",
        param=path,
        code="unsupported_value",
    )


def missing(path: str, what: str = "is required") -> InvalidRequest:
    """The error for a field that must be there."""
    return InvalidRequest(f"{path} {what}.", param=path, code="missing_required_parameter")


def boolean(value: Any, path: str, limits: LimitSettings) -> None:  # noqa: ARG001
    if not isinstance(value, bool):
        raise wrong(path, value, "true or false")


def integer(low: int, high: Bound = MAX_INT32) -> Check:
    """An integer in a closed range. True and 1.0 are not integers."""

    def check(value: Any, path: str, limits: LimitSettings) -> None:
        top = high if isinstance(high, int) else high(limits)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= top:
            raise wrong(path, value, f"an integer from {low} to {top}")

    return check


def number(low: float, high: float, *, above_low: bool = False) -> Check:
    """A finite number in a closed range (open at its low end with ``above_low``)."""
    allowed = f"a number above {low:g} and up to {high:g}" if above_low else ""
    allowed = allowed or f"a number from {low:g} to {high:g}"

    def check(value: Any, path: str, limits: LimitSettings) -> None:  # noqa: ARG001
        if (
            not isinstance(value, int | float)
            or isinstance(value, bool)
            or not low <= value <= high  # NaN and infinities fail here
            or (above_low and value == low)
        ):
            raise wrong(path, value, allowed)

    return check


def text(low: int = 0, high: Bound | None = None) -> Check:
    """A string of so many characters."""

    def check(value: Any, path: str, limits: LimitSettings) -> None:
        if not isinstance(value, str):
            raise wrong(path, value, "a string")
        if len(value) < low:
            raise wrong(path, value, "a string that is not empty")
        top = high(limits) if callable(high) else high
        if top is not None and len(value) > top:
            raise wrong(path, value, f"a string of at most {top} characters")

    return check


def one_of(*allowed: str) -> Check:
    """One of some strings."""
    names = ", ".join(repr(name) for name in allowed)

    def check(value: Any, path: str, limits: LimitSettings) -> None:  # noqa: ARG001
        if not isinstance(value, str) or value not in allowed:
            raise wrong(path, value, f"one of {names}")

    return check


def only(allowed: Collection[Any], why: str) -> Check:
    """Values that the protocol has, of which only these do here what they say."""
    names = ", ".join(json.dumps(value) for value in allowed)

    def check(value: Any, path: str, limits: LimitSettings) -> None:  # noqa: ARG001
        if not any(
            value is item or (value == item and type(value) is type(item)) for item in allowed
        ):
            raise unsupported_value(path, value, f"allowed is {names} ({why})")

    return check


def array(item: Check, low: int = 0, high: Bound = MAX_INT32) -> Check:
    """An array of so many items, each of which passes a check."""

    def check(value: Any, path: str, limits: LimitSettings) -> None:
        if not isinstance(value, list):
            raise wrong(path, value, "an array")
        top = high if isinstance(high, int) else high(limits)
        if not low <= len(value) <= top:
            raise wrong(path, value, f"an array of {low} to {top} items")
        for index, entry in enumerate(value):
            item(entry, f"{path}[{index}]", limits)

    return check


def obj(
    fields: dict[str, Check], required: Collection[str] = (), refused: dict[str, str] | None = None
) -> Check:
    """An object of known fields. A null in an optional field is as good as none, and is
    taken out, because vLLM does not read every null so."""

    def check(value: Any, path: str, limits: LimitSettings) -> None:
        if not isinstance(value, dict):
            raise wrong(path, value, "an object")
        for name in list(value):
            known = name in fields
            if value[name] is None and (known or name in (refused or ())):
                del value[name]
            elif not known:
                raise unknown_field(name, fields, path=path, refused=refused)
            else:
                fields[name](value[name], f"{path}.{name}", limits)
        for name in required:
            if name not in value:
                raise missing(f"{path}.{name}")

    return check


def unknown_field(
    name: str, known: Collection[str], *, path: str = "", refused: dict[str, str] | None = None
) -> InvalidRequest:
    """The error for a field that is not on the list: why it is refused, where that is
    known, else the names it may be a slip of."""
    import difflib

    full = f"{path}.{name}" if path else name
    # A lone surrogate cannot be sent back.
    full = full.encode("utf-8", "backslashreplace").decode()
    shown = full if len(full) <= _SHOWN_CHARS else full[:_SHOWN_CHARS] + "…"
    if refused and name in refused:
        return Unsupported(f"{shown} is not supported: {refused[name]}.", param=shown)
    near = difflib.get_close_matches(name[:_SHOWN_CHARS], sorted(known), n=3, cutoff=0.6)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return InvalidRequest(
        f"{shown} is not a known field.{hint}", param=shown, code="unknown_parameter"
    )


def anything(value: Any, path: str, limits: LimitSettings) -> None:
    """No check: the field is not used."""


def json_object(value: Any, path: str, limits: LimitSettings) -> None:  # noqa: ARG001
    """An object of any content."""
    if not isinstance(value, dict):
        raise wrong(path, value, "an object")


def grammar_size(value: Any, path: str, limits: LimitSettings) -> None:
    """What a grammar is compiled from must be small: compiling is where it costs."""
    size = len(json.dumps(value))
    if size > limits.max_grammar_bytes:
        raise InvalidRequest(
            f"{path} has {size} bytes; the limit is {limits.max_grammar_bytes}.", param=path
        )


def json_schema(value: Any, path: str, limits: LimitSettings) -> None:
    json_object(value, path, limits)
    grammar_size(value, path, limits)
    check_schema(value, path, limits)
