"""Taking out nulls, the tool of all the other files."""

from __future__ import annotations

from typing import Any

from llmserve.engine.protocol import Json

_NOTHING: frozenset[str] = frozenset()


def drop_nulls(obj: Json, keep: frozenset[str] = _NOTHING) -> Json:
    """Remove the null fields of one object, not of the objects in it."""
    for key in [key for key, value in obj.items() if value is None and key not in keep]:
        del obj[key]
    return obj


def objects(value: Any) -> list[Json]:
    """The objects of a JSON array; none when it is something else."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
