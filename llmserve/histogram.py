"""A Prometheus histogram that costs little to observe."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterable
from typing import Any

from prometheus_client import Histogram

_MOST_HELD = 256


class HeldHistogram(Histogram):
    """Puts values aside and counts them when it is read, or when there are many: a request
    that ends is observed two dozen times, and a lock and a bucket each time would cost more
    than to tokenize its prompt. What a scrape shows is exact. Observed by one thread, read by
    any."""

    _held: deque[float]
    _counting: threading.Lock

    def _metric_init(self) -> None:
        super()._metric_init()
        self._held = deque()
        self._counting = threading.Lock()

    def observe(self, amount: float, exemplar: dict[str, str] | None = None) -> None:
        """As ``Histogram.observe``."""
        if exemplar is not None:
            super().observe(amount, exemplar)
            return
        self._held.append(amount)
        if len(self._held) >= _MOST_HELD:
            self._count()

    def observe_all(self, amounts: Iterable[float]) -> None:
        """Observe each of them."""
        self._held.extend(amounts)
        if len(self._held) >= _MOST_HELD:
            self._count()

    def _count(self) -> None:
        with self._counting:
            amounts = [self._held.popleft() for _ in range(len(self._held))]
            self._sum.inc(sum(amounts))
            found = (bisect_left(self._upper_bounds, amount) for amount in amounts)
            for bucket, times in Counter(found).items():
                self._buckets[bucket].inc(times)

    def _child_samples(self) -> Iterable[Any]:
        self._count()
        return super()._child_samples()
