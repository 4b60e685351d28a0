"""A histogram that puts values aside shows what the usual one shows."""

from __future__ import annotations

import random
import re
import threading

import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from llmserve.histogram import HeldHistogram

BOUNDS = (0.1, 1.0, 2.0)


def shown(registry: CollectorRegistry, name: str) -> list[str]:
    text = generate_latest(registry).decode()
    return re.findall(rf"^{name}_(?:bucket|count).* (.*)$", text, re.MULTILINE)


def total(registry: CollectorRegistry, name: str) -> float:
    return registry.get_sample_value(f"{name}_sum", {"of": "x"}) or 0.0


def test_values_are_counted_as_by_the_usual_one() -> None:
    registry, chance = CollectorRegistry(), random.Random(1)  # noqa: S311  # any values
    usual = Histogram("usual", "", ("of",), registry=registry, buckets=BOUNDS).labels("x")
    one = HeldHistogram("one", "", ("of",), registry=registry, buckets=BOUNDS).labels("x")
    many = HeldHistogram("many", "", ("of",), registry=registry, buckets=BOUNDS).labels("x")
    for _ in range(7):
        values = [0.1, 0.100001, 1.0, 2.0, 7.0]
        values += [chance.expovariate(1) for _ in range(chance.randrange(400))]
        for value in values:
            usual.observe(value)
            one.observe(value)
        many.observe_all(values)
        assert shown(registry, "one") == shown(registry, "many") == shown(registry, "usual")
        assert total(registry, "one") == pytest.approx(total(registry, "usual"))
        assert total(registry, "many") == pytest.approx(total(registry, "usual"))
    assert len(shown(registry, "usual")) == len(BOUNDS) + 2


def test_nothing_is_lost_while_another_thread_reads() -> None:
    registry = CollectorRegistry()
    histogram = HeldHistogram("some", "", registry=registry, buckets=BOUNDS)
    ended = threading.Event()

    def read() -> None:
        while not ended.is_set():
            shown(registry, "some")

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(100_000):
        histogram.observe(0.5)
    ended.set()
    reader.join()
    assert shown(registry, "some") == ["0.0", "100000.0", "100000.0", "100000.0", "100000.0"]


def test_exemplars_are_kept() -> None:
    histogram = HeldHistogram("some", "", registry=CollectorRegistry(), buckets=BOUNDS)
    histogram.observe(0.5, {"request": "r1"})
    (family,) = histogram.collect()
    assert [sample.exemplar.labels for sample in family.samples if sample.exemplar] == [
        {"request": "r1"}
    ]
