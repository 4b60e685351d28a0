"""vLLM's own metrics, at a cost that is paid now and then and not for each step.

vLLM sets or raises dozens of series after each step of the engine. Most steps bring nothing
but one more token to each running request: those are put together, for a tenth of a second
at most, and counted at once. Whatever else happens (a request begins, ends, is preempted) is
counted in its step, after everything that was held back, and so is a scrape: what it shows is
exact.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Iterator
from typing import Any

from prometheus_client import REGISTRY
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from vllm.v1.metrics.loggers import PrometheusStatLogger

from llmserve.histogram import HeldHistogram

HOLD_SECONDS = 0.1


class StepMetrics(PrometheusStatLogger):  # type: ignore[misc]  # vLLM is untyped here
    """As ``PrometheusStatLogger``, which vLLM does not add where there is one of its kind."""

    _histogram_cls = HeldHistogram

    def __init__(self, vllm_config: Any, engine_indexes: list[int] | None = None) -> None:
        self._held: dict[int, _Held] = {}
        # A scrape is another thread's, and counts what is held before the next step does.
        self._lock = threading.RLock()
        # Before vLLM's own series are made: a scrape asks for them in this order.
        _BeforeScrape.register(self)
        super().__init__(vllm_config, engine_indexes)

    def record(
        self,
        scheduler_stats: Any,
        iteration_stats: Any,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        """As vLLM's."""
        with self._lock:
            if mm_cache_stats is None and _is_quiet(scheduler_stats, iteration_stats):
                held = self._held.get(engine_idx) or self._hold(engine_idx)
                held.add(scheduler_stats, iteration_stats)
                return
            self.count_held()
            if iteration_stats is not None:
                gaps = iteration_stats.inter_token_latencies_iter
                self.histogram_inter_token_latency[engine_idx].observe_all(gaps)
                iteration_stats.inter_token_latencies_iter = []
            super().record(scheduler_stats, iteration_stats, mm_cache_stats, engine_idx)

    def count_held(self) -> None:
        """Count what was held back."""
        with self._lock:
            for engine_idx, held in list(self._held.items()):
                self._count(engine_idx, held)

    def _hold(self, engine_idx: int) -> _Held:
        held = self._held[engine_idx] = _Held()
        asyncio.get_running_loop().call_later(HOLD_SECONDS, self._count, engine_idx, held)
        return held

    def _count(self, engine_idx: int, held: _Held) -> None:
        with self._lock:
            if self._held.get(engine_idx) is not held:
                return
            del self._held[engine_idx]
            self.counter_generation_tokens[engine_idx].inc(sum(held.tokens))
            self.histogram_iteration_tokens[engine_idx].observe_all(held.tokens)
            self.histogram_inter_token_latency[engine_idx].observe_all(held.gaps)
            super().record(held.scheduler_stats, None, None, engine_idx)


class _Held:
    """Steps that have not been counted yet: the tokens of each, the times between tokens,
    and what the scheduler said last."""

    def __init__(self) -> None:
        self.tokens: list[float] = []
        self.gaps: list[float] = []
        self.scheduler_stats: Any = None

    def add(self, scheduler_stats: Any, iteration_stats: Any) -> None:
        self.tokens.append(iteration_stats.num_generation_tokens)
        self.gaps += iteration_stats.inter_token_latencies_iter
        if scheduler_stats is not None:
            self.scheduler_stats = scheduler_stats


class _BeforeScrape(Collector):
    """Has no series: it is asked for them at each scrape, before vLLM's are."""

    def __init__(self, metrics: StepMetrics) -> None:
        self._metrics = weakref.ref(metrics)

    @classmethod
    def register(cls, metrics: StepMetrics) -> None:
        """In the place of the one of an engine before this."""
        for collector in list(REGISTRY._collector_to_names):
            if isinstance(collector, cls):
                REGISTRY.unregister(collector)
        REGISTRY.register(cls(metrics))

    def describe(self) -> Iterator[Metric]:
        return iter(())

    def collect(self) -> Iterator[Metric]:
        metrics = self._metrics()
        if metrics is not None:
            metrics.count_held()
        return iter(())


def _is_quiet(scheduler: Any, iteration: Any) -> bool:
    """Whether a step brought tokens to requests that were running already, and nothing
    that is counted otherwise."""
    if iteration is None or not iteration.inter_token_latencies_iter:
        return False
    if (
        iteration.finished_requests
        or iteration.time_to_first_tokens_iter
        or iteration.max_num_generation_tokens_iter
        or iteration.n_params_iter
        or iteration.num_preempted_reqs
        or iteration.num_corrupted_reqs
        or iteration.prompt_token_stats.total
    ):
        return False
    return scheduler is None or not (
        scheduler.prefix_cache_stats.queries
        or scheduler.connector_prefix_cache_stats
        or scheduler.spec_decoding_stats
        or scheduler.kv_connector_stats
        or scheduler.ec_connector_stats
        or scheduler.perf_stats
        or scheduler.kv_cache_eviction_events
    )
