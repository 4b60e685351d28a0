"""Text that satisfies a structured-output constraint: small, valid, deterministic."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any

from llmserve.engine.fake.regex import matching
from llmserve.errors import InvalidRequest
from llmserve.types import Constraint

# A hostile schema (recursive, or asking for a billion items) must not hang the process.
_MAX_DEPTH = 64
_MAX_NODES = 10_000
_MAX_LENGTH = 10_000

_WHAT = ("type", "enum", "const", "$ref", "anyOf", "oneOf", "allOf")
_FORMATS = {
    "date": "2026-01-01",
    "time": "00:00:00Z",
    "date-time": "2026-01-01T00:00:00Z",
    "email": "a@example.org",
    "uri": "https://example.org/",
    "uuid": "00000000-0000-4000-8000-000000000000",
}

Schema = Mapping[str, Any]


class _Unsatisfied(Exception):
    """This branch of the schema has no small instance that the fake can find."""


def constrained_text(constraint: Constraint, key: str) -> str:
    """A text that the constraint allows. ``key`` picks among choices.

    Raises ``InvalidRequest`` for what the fake cannot satisfy.
    """
    if constraint.choice is not None:
        return constraint.choice[zlib.crc32(key.encode(errors="replace")) % len(constraint.choice)]
    if constraint.regex is not None:
        return matching(constraint.regex)
    return json.dumps(instance(constraint.json_schema or {}), ensure_ascii=False)


def instance(schema: Schema) -> Any:
    """A small instance of a JSON schema; one that names no type gets an object."""
    root = schema if any(key in schema for key in _WHAT) else {**schema, "type": "object"}
    try:
        return _Maker(root).make(root, 0)
    except _Unsatisfied as error:
        reason = str(error)
    except (AttributeError, KeyError, TypeError, ValueError):
        reason = "it is malformed"
    raise InvalidRequest(
        f"The fake engine found no instance of this JSON schema: {reason}.", param="json_schema"
    )


class _Maker:
    """Makes one instance of one schema."""

    def __init__(self, root: Schema) -> None:
        self._root = root
        self._nodes = 0

    def make(self, schema: Any, depth: int) -> Any:
        self._nodes += 1
        if depth > _MAX_DEPTH or self._nodes > _MAX_NODES:
            raise _Unsatisfied("it is too deep or too large")
        if schema is True:
            return None
        if not isinstance(schema, Mapping):
            raise _Unsatisfied(f"{schema!r} allows nothing")
        if "$ref" in schema:
            return self.make(self._resolve(schema["$ref"]), depth + 1)
        if "allOf" in schema:
            return self.make(self._merged(schema), depth + 1)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return _first(schema["enum"], "enum")
        for key in ("anyOf", "oneOf"):
            if key in schema:
                return self._any_of(schema, key, depth)
        return self._typed(schema, depth)

    def _typed(self, schema: Schema, depth: int) -> Any:
        kind = schema.get("type", "object" if "properties" in schema else "null")
        if isinstance(kind, list):
            kind = _first(kind, "type")
        match kind:
            case "object":
                properties = schema.get("properties", {})
                return {
                    name: self.make(properties.get(name, True), depth + 1)
                    for name in schema.get("required", ())
                }
            case "array":
                return [self.make(item, depth + 1) for item in _items(schema)]
            case "string":
                return _string(schema)
            case "integer" | "number":
                return _number(schema, whole=kind == "integer")
            case "boolean":
                return True
            case "null":
                return None
        raise _Unsatisfied(f"the type {kind!r} is not one of JSON schema")

    def _any_of(self, schema: Schema, key: str, depth: int) -> Any:
        rest = {name: value for name, value in schema.items() if name != key}
        reason = _Unsatisfied(f"{key} is empty")
        for option in schema[key]:
            try:
                merged = {**rest, **option} if isinstance(option, Mapping) else option
                return self.make(merged, depth + 1)
            except _Unsatisfied as error:
                reason = error
        raise reason

    def _merged(self, schema: Schema) -> Schema:
        """One schema for ``allOf``: properties and required unite, the rest overwrites."""
        whole = {name: value for name, value in schema.items() if name != "allOf"}
        for part in schema["allOf"]:
            resolved = self._resolve(part["$ref"]) if "$ref" in part else part
            properties = {**whole.get("properties", {}), **resolved.get("properties", {})}
            required = [*whole.get("required", ()), *resolved.get("required", ())]
            whole = {**whole, **resolved}
            if properties:
                whole |= {"properties": properties, "required": list(dict.fromkeys(required))}
        return whole

    def _resolve(self, reference: str) -> Any:
        if not reference.startswith("#"):
            raise _Unsatisfied(f"the reference {reference!r} leaves the schema")
        target: Any = self._root
        for part in filter(None, reference[1:].split("/")):
            name = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(target, Mapping) or name not in target:
                raise _Unsatisfied(f"the reference {reference!r} points nowhere")
            target = target[name]
        return target


def _items(schema: Schema) -> list[Any]:
    first = list(schema.get("prefixItems", ()))
    more = max(0, schema.get("minItems", 0) - len(first))
    if more > _MAX_LENGTH:
        raise _Unsatisfied(f"more than {_MAX_LENGTH} items are asked for")
    return first + [schema.get("items", True)] * more


def _string(schema: Schema) -> str:
    if "pattern" in schema:
        return matching(schema["pattern"])
    shortest = schema.get("minLength", 0)
    if shortest > _MAX_LENGTH:
        raise _Unsatisfied(f"more than {_MAX_LENGTH} characters are asked for")
    text = str(_FORMATS.get(schema.get("format", ""), "text")).ljust(shortest, "x")
    return text[: schema.get("maxLength", len(text))]


def _number(schema: Schema, *, whole: bool) -> int | float:
    step = schema.get("multipleOf", 1)
    bounds = [
        schema[key]
        for key in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")
        if key in schema
    ]
    near = [near for bound in bounds for near in (bound // step * step, -(-bound // step) * step)]
    around = [value + shift for value in near for shift in (0, step, -step)]
    middle = [] if whole or len(bounds) < 2 else [sum(bounds) / len(bounds)]
    for value in (0, *around, *middle):
        if _in_bounds(schema, value) and not (whole and value != int(value)):
            return int(value) if whole else value
    raise _Unsatisfied("no number between its bounds was found")


def _in_bounds(schema: Schema, value: float) -> bool:
    low, high = schema.get("minimum", value), schema.get("maximum", value)
    above = "exclusiveMinimum" not in schema or value > schema["exclusiveMinimum"]
    below = "exclusiveMaximum" not in schema or value < schema["exclusiveMaximum"]
    whole = "multipleOf" not in schema or value % schema["multipleOf"] == 0
    return bool(low <= value <= high and above and below and whole)


def _first(values: Any, keyword: str) -> Any:
    if not isinstance(values, list) or not values:
        raise _Unsatisfied(f"{keyword} allows nothing")
    return values[0]
