"""The ``llmserve_*`` series: what only the front door knows.

vLLM's own series stay as they are and are served beside these. Rates are Prometheus'
business: everything that grows is a counter.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from llmserve import __version__
from llmserve.gateway.entry import UNKNOWN_MODEL, Entry
from llmserve.histogram import HeldHistogram
from llmserve.types import GAP_BUCKETS, Meter, Outcome

_SECONDS = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0),
    *(10.0, 30.0, 60.0, 120.0, 300.0, 600.0),
)


@dataclass(frozen=True, slots=True)
class State:
    """What is read off the server at the moment of a scrape."""

    model: str
    ready: bool
    draining: bool
    running: int = 0
    waiting: int = 0
    waiting_prompt_tokens: int = 0
    restarts: int = 0
    cache_hits: int = 0
    cache_misses: int = 0
    cache_bytes: int = 0


class TokenGaps(Collector):
    """Histogram of the times between tokens, fed with whole requests: observing each
    token would cost the stream more than sending it."""

    def __init__(self) -> None:
        self._models: dict[str, tuple[list[int], float]] = {}

    def add(self, model: str, meter: Meter) -> None:
        if not any(meter.gap_counts):
            return
        counts, seconds = self._models.get(model) or ([0] * len(GAP_BUCKETS), 0.0)
        summed = [a + b for a, b in zip(counts, meter.gap_counts, strict=True)]
        self._models[model] = (summed, seconds + meter.gap_seconds)

    def collect(self) -> Iterator[HistogramMetricFamily]:
        family = HistogramMetricFamily(
            "llmserve_inter_token_latency_seconds",
            "Time between two tokens of a request; tokens that arrive together share theirs.",
            labels=["model"],
        )
        for model, (counts, seconds) in self._models.items():
            bounds = [str(floatToGoString(bound)) for bound in GAP_BUCKETS]  # type: ignore[no-untyped-call]
            buckets = list(zip(bounds, accumulate(counts), strict=True))
            family.add_metric([model], buckets=buckets, sum_value=seconds)
        yield family


@dataclass(frozen=True, slots=True)
class _Series:
    """What the requests of one route to one model are counted on."""

    outcomes: dict[Outcome, Counter]
    duration: HeldHistogram
    queue: HeldHistogram
    prompt: Counter
    cached: Counter
    completion: Counter
    ttft: HeldHistogram


class Metrics:
    """One set of series in a registry of its own, so that several servers can live in
    one process (tests do that)."""

    def __init__(self, engine: str) -> None:
        self.registry = CollectorRegistry()
        registry, by_model = self.registry, ("model",)
        self._requests = Counter(
            "llmserve_requests",
            "Requests by the outcome they ended in; each request counts once.",
            ("route", "model", "outcome"),
            registry=registry,
        )
        self._duration = HeldHistogram(
            "llmserve_request_duration_seconds",
            "Time from the arrival of a request to the end of its reply.",
            ("route", "model"),
            buckets=_SECONDS,
            registry=registry,
        )
        self._prompt = Counter(
            "llmserve_prompt_tokens", "Prompt tokens taken in.", by_model, registry=registry
        )
        self._cached = Counter(
            "llmserve_cached_prompt_tokens",
            "Prompt tokens found in the prefix cache.",
            by_model,
            registry=registry,
        )
        self._completion = Counter(
            "llmserve_completion_tokens",
            "Tokens generated for clients.",
            by_model,
            registry=registry,
        )
        self._ttft = HeldHistogram(
            "llmserve_time_to_first_token_seconds",
            "Time from the arrival of a request to its first token.",
            by_model,
            buckets=_SECONDS,
            registry=registry,
        )
        self._gaps = TokenGaps()
        self.registry.register(self._gaps)
        self._queue = HeldHistogram(
            "llmserve_queue_seconds",
            "Time that requests which got a place had to wait for it, arrival included.",
            by_model,
            buckets=_SECONDS,
            registry=registry,
        )
        self._refused = Counter(
            "llmserve_refused_requests",
            "Requests that were sent away before any work was done, by the error code.",
            ("route", "code"),
            registry=registry,
        )
        self._now = _Now(registry)
        self._series: dict[tuple[str, str], _Series] = {}
        Gauge("llmserve_build_info", "Always 1.", ("version", "engine"), registry=registry).labels(
            __version__, engine
        ).set(1)

    def prepare(self, model: str, routes: Iterable[str]) -> None:
        """Show a model's counters from the start: a rate needs a zero to rise from."""
        for counter in (self._prompt, self._cached, self._completion):
            counter.labels(model)
        for route in routes:
            for outcome in Outcome:
                self._requests.labels(route, model, outcome.value)

    def closed(self, entry: Entry) -> None:
        """A request has ended; its outcome and its meter are final."""
        outcome = entry.outcome or Outcome.FAILED
        meter, model = entry.meter, entry.model
        series = self._series.get((entry.route, model)) or self._find(entry.route, model)
        series.outcomes[outcome].inc()
        if outcome is Outcome.REJECTED:
            self._refused.labels(entry.route, entry.error_code or "unknown").inc()
        series.duration.observe(time.monotonic() - entry.started)
        if entry.admitted_at is not None:
            series.queue.observe(entry.admitted_at - entry.started)
        if model == UNKNOWN_MODEL or entry.from_cache:
            return
        series.prompt.inc(meter.prompt_tokens)
        series.cached.inc(meter.cached_tokens)
        series.completion.inc(meter.completion_tokens)
        if meter.first_token_at is not None:
            series.ttft.observe(max(0.0, meter.first_token_at - entry.started))
            self._gaps.add(model, meter)

    def _find(self, route: str, model: str) -> _Series:
        """The series of a route and model, looked up once: the client library takes longer
        to find a series than to count on it."""
        series = _Series(
            outcomes={each: self._requests.labels(route, model, each.value) for each in Outcome},
            duration=self._duration.labels(route, model),
            queue=self._queue.labels(model),
            prompt=self._prompt.labels(model),
            cached=self._cached.labels(model),
            completion=self._completion.labels(model),
            ttft=self._ttft.labels(model),
        )
        self._series[route, model] = series
        return series

    def render(self, state: State) -> bytes:
        """The text exposition of our series and vLLM's."""
        self._now.show(state)
        return generate_latest(self.registry) + generate_latest(REGISTRY)


class _Now:
    """The series that are read off the server at each scrape."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, meaning: str, *labels: str) -> Gauge:
            return Gauge(name, meaning, labels, registry=registry)

        def counter(name: str, meaning: str) -> Counter:
            return Counter(name, meaning, registry=registry)

        self._in_flight = gauge(
            "llmserve_requests_in_flight", "Requests that run or wait for their turn.", "model"
        )
        self._waiting = gauge(
            "llmserve_requests_waiting", "Requests that wait for their turn.", "model"
        )
        self._waiting_tokens = gauge(
            "llmserve_waiting_prompt_tokens", "Their prompt tokens, estimated.", "model"
        )
        self._ready = gauge("llmserve_ready", "1 while readiness holds.")
        self._draining = gauge("llmserve_draining", "1 while the server is shutting down.")
        self._cache_bytes = gauge("llmserve_cache_bytes", "Memory of kept answers.")
        self._restarts = counter("llmserve_engine_restarts", "How often a running engine has died.")
        self._hits = counter("llmserve_cache_hits", "Requests answered from kept answers.")
        self._misses = counter("llmserve_cache_misses", "Cacheable requests that were not.")
        self._seen = {self._restarts: 0, self._hits: 0, self._misses: 0}

    def show(self, state: State) -> None:
        """Set the gauges, and bring the counters up to what the server has counted."""
        self._in_flight.labels(state.model).set(state.running + state.waiting)
        self._waiting.labels(state.model).set(state.waiting)
        self._waiting_tokens.labels(state.model).set(state.waiting_prompt_tokens)
        self._ready.set(state.ready)
        self._draining.set(state.draining)
        self._cache_bytes.set(state.cache_bytes)
        counted = (
            (self._restarts, state.restarts),
            (self._hits, state.cache_hits),
            (self._misses, state.cache_misses),
        )
        for counter, value in counted:
            counter.inc(value - self._seen[counter])
            self._seen[counter] = value
