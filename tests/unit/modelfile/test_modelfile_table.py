"""Filter, sort and page the tensor table."""

from __future__ import annotations

import time

import pytest

from llmserve.modelfile import SORTS, TensorInfo, query

TABLE = [
    TensorInfo(f"layers.{index}.weight", (index, 2), "BF16" if index % 2 else "F32", 4, index, "f")
    for index in range(12)
]


def names(**options: object) -> list[str]:
    return [each.name for each in query(TABLE, **options).rows]  # type: ignore[arg-type]


def test_filters() -> None:
    assert names(name="layers.1") == [f"layers.{index}.weight" for index in (1, 10, 11)]
    assert names(name="*.1?.weight") == ["layers.10.weight", "layers.11.weight"]
    assert len(names(dtype="bf16")) == 6
    assert names(name="[1]") == []


def test_order_and_pages() -> None:
    page = query(TABLE, sort="name", descending=True, offset=1, limit=2)
    assert [each.name for each in page.rows] == ["layers.10.weight", "layers.9.weight"]
    assert (page.matched, page.total, page.offset) == (12, 12, 1)
    assert names(descending=True)[0] == "layers.11.weight"
    assert query(TABLE, offset=100).rows == ()


@pytest.mark.parametrize("sort", sorted(SORTS))
def test_every_order_copes_with_odd_names(sort: str) -> None:
    odd = [TensorInfo(name, (), "F32", 0, 0, "f") for name in ("", "9", "a9", "٣", "²", "9" * 50)]
    assert len(query(TABLE + odd, sort=sort).rows) == 18


def test_patterns_are_no_way_to_hang() -> None:
    table = [TensorInfo("a" * 3000, (), "F32", 0, 0, "f")]
    start = time.thread_time()
    assert query(table, name="*a" * 40 + "b").rows == ()
    assert query(table, name="*" * 5000 + "b").rows == ()
    assert time.thread_time() - start < 1
