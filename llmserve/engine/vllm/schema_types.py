"""What a JSON schema says of the values it allows: their types, and which ones it lists."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any


def exclusive(branches: list[Any]) -> bool:
    """Whether no value can fit two of the branches, as far as their types and the fixed
    values of their required properties tell."""
    return all(_disjoint(one, other) for one, other in itertools.combinations(branches, 2))


def _disjoint(one: Any, other: Any) -> bool:
    if not isinstance(one, Mapping) or not isinstance(other, Mapping):
        return False
    types, others = types_of(one), types_of(other)
    # An integer is a number as well.
    if not _widened(types) & _widened(others):
        return True
    first, second = values_of(one), values_of(other)
    if first is not None and second is not None:
        return not _common(first, second)
    if types != {"object"} or others != {"object"}:
        return False
    for name in set(one.get("required") or ()) & set(other.get("required") or ()):
        first = values_of((one.get("properties") or {}).get(name))
        second = values_of((other.get("properties") or {}).get(name))
        if first is not None and second is not None and not _common(first, second):
            return True
    return False


def _common(first: list[Any], second: list[Any]) -> bool:
    return any(left == right for left in first for right in second)


_ALL_TYPES = frozenset(("null", "boolean", "object", "array", "number", "integer", "string"))


def types_of(schema: Any) -> frozenset[str]:
    """The types that a schema allows, as far as it says so itself."""
    if not isinstance(schema, Mapping):
        return _ALL_TYPES
    types = schema.get("type")
    if isinstance(types, str):
        return frozenset((types,))
    if isinstance(types, list):
        return frozenset(name for name in types if isinstance(name, str))
    if (values := values_of(schema)) is not None:
        return frozenset(name for value in values for name in _ALL_TYPES if _is(value, name))
    return frozenset(("object",)) if "properties" in schema else _ALL_TYPES


def _widened(types: frozenset[str]) -> frozenset[str]:
    return types | {"number"} if "integer" in types else types


def values_of(schema: Any) -> list[Any] | None:
    """The values that a schema lists, if it does."""
    if not isinstance(schema, Mapping):
        return None
    if "const" in schema:
        return [schema["const"]]
    return schema["enum"] if isinstance(schema.get("enum"), list) else None


def is_of_type(value: Any, types: frozenset[str]) -> bool:
    return any(_is(value, name) for name in types)


def _is(value: Any, name: str) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    checks: dict[str, bool] = {
        "null": value is None,
        "boolean": isinstance(value, bool),
        "object": isinstance(value, dict),
        "array": isinstance(value, list),
        "string": isinstance(value, str),
        "number": number,
        "integer": number and (isinstance(value, int) or value.is_integer()),
    }
    return checks.get(name, False)
