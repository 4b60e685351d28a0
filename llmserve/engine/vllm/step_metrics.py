"""vLLM's own metrics, at a cost for each step and not for each token.

vLLM looks up the bucket of each time between two tokens and takes two locks for it. The
tokens of one step have almost the same time: they are put together first. What a scrape
shows is the same.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from typing import Any

from prometheus_client import Histogram
from vllm.v1.metrics.loggers import PrometheusStatLogger


class StepMetrics(PrometheusStatLogger):  # type: ignore[misc]  # vLLM is untyped here
    """As ``PrometheusStatLogger``, which vLLM does not add where there is one of its kind."""

    def record(
        self,
        scheduler_stats: Any,
        iteration_stats: Any,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        """As vLLM's."""
        if iteration_stats is not None and iteration_stats.inter_token_latencies_iter:
            seconds = iteration_stats.inter_token_latencies_iter
            observe_all(self.histogram_inter_token_latency[engine_idx], seconds)
            iteration_stats.inter_token_latencies_iter = []
        super().record(scheduler_stats, iteration_stats, mm_cache_stats, engine_idx)


def observe_all(histogram: Histogram, values: list[float]) -> None:
    """What ``histogram.observe`` does for each value."""
    bounds = histogram._upper_bounds
    histogram._sum.inc(sum(values))
    for index, count in Counter(bisect_left(bounds, value) for value in values).items():
        histogram._buckets[index].inc(count)
