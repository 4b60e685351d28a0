"""JSON that somebody else wrote, within bounds."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

from llmserve.modelfile.errors import Malformed
from llmserve.modelfile.jsonwalk import PARSED, parse
from llmserve.modelfile.source import Store
from llmserve.modelfile.types import ArraySummary, MetaValue

MAX_CONFIG = 2_000_000
"""Longer configuration files are not read. Parsed, JSON takes up to 30 times its size."""

SHOWN_ITEMS = 16
SHOWN_TEXT = 65_536
MAX_FLAT = 20_000
"""Values that a flattened object may have."""


def load_object(name: str, text: bytes) -> dict[str, Any]:
    """A file that holds one JSON object. Raises ``Malformed``."""
    if len(text) > MAX_CONFIG:
        place = f"byte {MAX_CONFIG}"
        raise Malformed(name, place, f"an end (at most {MAX_CONFIG:,} bytes)", "more")
    try:
        decoded = text.decode()
        value = parse(name, text, 0, len(text)) if len(text) > PARSED else json.loads(decoded)
    except UnicodeDecodeError as error:
        raise Malformed(name, f"byte {error.start}", "UTF-8 text") from error
    except json.JSONDecodeError as error:
        raise Malformed(name, f"character {error.pos}", f"JSON ({error.msg})") from error
    except RecursionError as error:
        raise Malformed(name, "some place", "JSON of a sensible depth") from error
    except ValueError as error:
        raise Malformed(name, "some place", "numbers of a sensible length") from error
    if not isinstance(value, dict):
        raise Malformed(name, "byte 0", "a JSON object", type(value).__name__)
    return value


def read_object(store: Store, name: str) -> dict[str, Any]:
    """The same, of a file in a store."""
    source = store.open(name)
    try:
        return load_object(name, source.read(0, MAX_CONFIG + 1))
    finally:
        source.close()


def flatten(prefix: str, value: Any) -> dict[str, MetaValue]:
    """Nested objects as dotted keys, lists as summaries."""
    found: dict[str, MetaValue] = {}
    for key, item in _leaves(prefix, value):
        if len(found) >= MAX_FLAT:
            break
        found[key] = item
    return found


def _leaves(prefix: str, value: Any) -> Iterator[tuple[str, MetaValue]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            name = str(key)[:1000]
            yield from _leaves(f"{prefix}.{name}" if prefix else name, item)
    else:
        yield prefix, meta_value(value)


def meta_value(value: Any) -> MetaValue:
    """A value as it can be shown, and written as JSON again."""
    if isinstance(value, str):
        if len(value) <= SHOWN_TEXT:
            return value
        return f"{value[:SHOWN_TEXT]}… ({len(value):,} characters)"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, list | tuple):
        first = tuple(_item(each) for each in value[:SHOWN_ITEMS])
        kinds = {type(each).__name__ for each in value}
        return ArraySummary(kinds.pop() if len(kinds) == 1 else "mixed", len(value), first)
    if value is None or isinstance(value, int | float):
        return value
    return str(value)[:1000]


def _item(value: Any) -> str | int | float | bool | None:
    if isinstance(value, list | tuple | dict):
        return json.dumps(value)[:200]
    shown = meta_value(value)
    return None if isinstance(shown, ArraySummary) else shown


def is_count(value: object, most: int = 2**53) -> TypeGuard[int]:
    """Whether this is a number of things: an integer from 1 to ``most``."""
    return type(value) is int and 0 < value <= most


def get_count(values: Mapping[str, Any], *names: str) -> int | None:
    """The first of these keys that holds a number of things."""
    for name in names:
        if is_count(value := values.get(name)):
            return value
    return None


def get_number(values: Mapping[str, Any], *names: str) -> float | None:
    """The first of these keys that holds a finite number."""
    for name in names:
        value = values.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300:
            return float(value)
    return None


def get_text(values: Mapping[str, Any], *names: str) -> str | None:
    """The first of these keys that holds a text (not an empty one)."""
    for name in names:
        if isinstance(value := values.get(name), str) and value:
            return value
    return None
