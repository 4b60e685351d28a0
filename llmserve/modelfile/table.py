"""The tensor table: filter, sort, page."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import translate
from typing import Any

from llmserve.modelfile.types import TensorInfo

SORTS: dict[str, Callable[[TensorInfo], Any]] = {
    "file": lambda each: (each.file, each.offset),
    "name": lambda each: _natural(each.name),
    "size": lambda each: each.bytes,
    "dtype": lambda each: (each.dtype, _natural(each.name)),
    "shape": lambda each: each.shape,
}
"""What a table can be sorted by. ``file`` is the order on disk."""


@dataclass(frozen=True, slots=True)
class TensorPage:
    """``matched`` tensors passed the filter; ``rows`` are those from ``offset`` on."""

    rows: tuple[TensorInfo, ...]
    matched: int
    total: int
    offset: int


def query(
    tensors: Sequence[TensorInfo],
    *,
    name: str | None = None,
    dtype: str | None = None,
    sort: str | None = None,
    descending: bool = False,
    offset: int = 0,
    limit: int | None = None,
) -> TensorPage:
    """``name`` is a part of the name, or a pattern with ``*`` and ``?``; ``dtype`` is
    exact but for its case. Without ``sort`` (a key of ``SORTS``) rows stay as they are.
    """
    found = list(tensors)
    if dtype is not None:
        found = [each for each in found if each.dtype == dtype.upper()]
    if name is not None:
        matches = _matcher(name)
        found = [each for each in found if matches(each.name)]
    if sort is not None:
        found.sort(key=SORTS[sort], reverse=descending)
    elif descending:
        found.reverse()
    end = None if limit is None else offset + limit
    return TensorPage(tuple(found[offset:end]), len(found), len(tensors), offset)


def _matcher(pattern: str) -> Callable[[str], object]:
    if not set(pattern) & set("*?"):
        return lambda name: pattern in name
    # Runs of "*" mean the same as one, and many of them make a regular expression slow.
    return re.compile(translate(re.sub(r"\*+", "*", pattern))).match


def _natural(name: str) -> list[tuple[int, int | str]]:
    """layers.2 before layers.10."""
    return [
        (0, int(part)) if part.isdecimal() else (1, part)
        for part in re.split(r"([0-9]{1,18})", name)
    ]
