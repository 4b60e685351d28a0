"""vLLM's own metrics, at a cost that is paid now and then and not for each step.

vLLM sets or raises dozens of series after each step of the engine. Steps are put together
here, for a tenth of a second at most, and counted at once. What cannot be added up (the
statistics of speculative decoding, of connectors, of other caches) is counted in its step,
after everything that was held back, and so is a scrape: what it shows is exact.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from prometheus_client import REGISTRY
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from vllm.v1.metrics.loggers import PrometheusStatLogger
from vllm.v1.metrics.stats import IterationStats, PrefixCacheStats, PromptTokenStats

from llmserve.histogram import HeldHistogram

HOLD_SECONDS = 0.1


class StepMetrics(PrometheusStatLogger):  # type: ignore[misc]  # vLLM is untyped here
    """As ``PrometheusStatLogger``, which vLLM does not add where there is one of its kind."""

    _histogram_cls = HeldHistogram
    histogram_iteration_tokens: dict[int, Any]

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
            if mm_cache_stats is None and _can_be_held(scheduler_stats, iteration_stats):
                held = self._held.get(engine_idx)
                # vLLM shows which adapters have run together, for each set of them.
                if held is not None and held.has_other_adapters(scheduler_stats):
                    self.count_held()
                    held = None
                held = held or self._hold(engine_idx)
                held.add(scheduler_stats, iteration_stats)
                return
            self.count_held()
            if iteration_stats is not None:
                self._observe_gaps(engine_idx, iteration_stats)
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
            self.histogram_iteration_tokens[engine_idx].observe_all(held.tokens)
            self._observe_gaps(engine_idx, held.iteration)
            # Of all that vLLM counts this alone is of each step: it must not see the sum.
            tokens = self.histogram_iteration_tokens
            self.histogram_iteration_tokens = {engine_idx: _Deaf()}
            try:
                super().record(held.summed(), held.iteration, None, engine_idx)
            finally:
                self.histogram_iteration_tokens = tokens

    def _observe_gaps(self, engine_idx: int, iteration_stats: Any) -> None:
        gaps = iteration_stats.inter_token_latencies_iter
        self.histogram_inter_token_latency[engine_idx].observe_all(gaps)
        iteration_stats.inter_token_latencies_iter = []


class _Deaf:
    """A histogram that counts nothing."""

    def observe(self, amount: float) -> None:
        """It has been counted."""


class _Held:
    """Steps that have not been counted yet: the tokens of each, the sum of what they
    brought, and what the scheduler said last."""

    def __init__(self) -> None:
        self.tokens: list[float] = []
        self.iteration = IterationStats()
        self._scheduler: Any = None
        self._prefix = PrefixCacheStats()

    def has_other_adapters(self, scheduler: Any) -> bool:
        """Whether the adapters of a step are others than those of the steps before it."""
        if scheduler is None or self._scheduler is None:
            return False
        last = self._scheduler
        return bool(
            scheduler.running_lora_adapters.keys() != last.running_lora_adapters.keys()
            or scheduler.waiting_lora_adapters.keys() != last.waiting_lora_adapters.keys()
        )

    def add(self, scheduler: Any, iteration: Any) -> None:
        """One more step."""
        self.tokens.append(iteration.prompt_token_stats.computed + iteration.num_generation_tokens)
        _add_up(self.iteration, iteration)
        if scheduler is not None:
            self._scheduler = scheduler
            self._prefix.queries += scheduler.prefix_cache_stats.queries
            self._prefix.hits += scheduler.prefix_cache_stats.hits

    def summed(self) -> Any:
        """How things stand, with what was added up; ``None`` when the scheduler was silent."""
        if self._scheduler is None:
            return None
        return replace(self._scheduler, prefix_cache_stats=self._prefix)


def _add_up(total: Any, more: Any) -> None:
    """Add the numbers of ``more`` and append its lists, down to the objects in it."""
    for name, value in vars(more).items():
        kind = type(value)
        if kind is list:
            if value:
                getattr(total, name).extend(value)
        elif kind is int:
            if value:
                setattr(total, name, getattr(total, name) + value)
        elif kind is PromptTokenStats and value.total:
            _add_up(getattr(total, name), value)


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


def _can_be_held(scheduler: Any, iteration: Any) -> bool:
    """Whether a step is made of numbers and lists only."""
    if iteration is None:
        return False
    return scheduler is None or not (
        scheduler.connector_prefix_cache_stats
        or scheduler.spec_decoding_stats
        or scheduler.kv_connector_stats
        or scheduler.ec_connector_stats
        or scheduler.perf_stats
        or scheduler.kv_cache_eviction_events
    )
