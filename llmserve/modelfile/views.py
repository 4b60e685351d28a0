"""What is known of a model, as plain values for JSON: one shape for the command line and
the routes. Sizes are bytes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from enum import Enum
from typing import Any

from llmserve.modelfile.estimate import Estimate
from llmserve.modelfile.servable import refusal
from llmserve.modelfile.table import TensorPage
from llmserve.modelfile.types import ModelFile

_LONG = frozenset({"tensors", "metadata"})


def summary(model: ModelFile) -> dict[str, Any]:
    """Everything but the tensor table and the metadata, which can be long. ``refusal``:
    why it cannot be served, as far as the headers tell."""
    fields = (each.name for each in dataclasses.fields(model) if each.name not in _LONG)
    shown = {name: plain(getattr(model, name)) for name in fields}
    totals = {
        "tensor_count": len(model.tensors),
        "metadata_count": len(model.metadata),
        "total_bytes": model.total_bytes,
        "tensor_bytes": model.tensor_bytes,
        "mapped": model.mapped,
        "refusal": refusal(model),
    }
    return shown | totals


def tensor_page(page: TensorPage) -> dict[str, Any]:
    """One page of a tensor table."""
    return {
        "total": page.total,
        "matched": page.matched,
        "offset": page.offset,
        "tensors": [each._asdict() for each in page.rows],
    }


def metadata(model: ModelFile) -> dict[str, Any]:
    """Every key that the files hold; long lists by length and first items."""
    return {str(key): plain(value) for key, value in model.metadata.items()}


def estimate_view(found: Estimate) -> dict[str, Any]:
    """An estimate."""
    shown: dict[str, Any] = plain(found)
    return shown


def plain(value: Any) -> Any:
    """Dataclasses, named tuples and mappings as what JSON knows."""
    if isinstance(value, Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if hasattr(value, "_asdict"):
        return {name: plain(item) for name, item in value._asdict().items()}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
