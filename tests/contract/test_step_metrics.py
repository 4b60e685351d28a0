"""vLLM's series are the same whether its steps are counted one by one or put together."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import REGISTRY, generate_latest

from llmserve.engine.protocol import Engine

pytestmark = pytest.mark.anyio


def scrape() -> dict[str, float]:
    text = generate_latest(REGISTRY).decode()
    lines = [line for line in text.splitlines() if line.startswith("vllm:")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def difference(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """What was counted; the gauges as they are."""
    counted = ("_total", "_count", "_sum", "_bucket")
    return {
        name: round(
            value - (before.get(name, 0) if name.partition("{")[0].endswith(counted) else 0), 9
        )
        for name, value in after.items()
        if not name.partition("{")[0].endswith("_created")
    }


def steps() -> list[tuple[Any, Any]]:
    """Steps of all kinds, as an engine makes them: most of them quiet."""
    from vllm.v1.engine import FinishReason
    from vllm.v1.metrics.stats import FinishedRequestStats, IterationStats, SchedulerStats

    chance, made = random.Random(5), []  # noqa: S311  # the same steps each time
    for number in range(200):
        iteration, scheduler = IterationStats(), SchedulerStats()
        running = chance.randrange(1, 40)
        iteration.num_generation_tokens = running
        iteration.inter_token_latencies_iter = [chance.expovariate(50) for _ in range(running)]
        scheduler.num_running_reqs, scheduler.kv_cache_usage = running, chance.random()
        if number % 13 == 0:
            iteration.time_to_first_tokens_iter = [chance.random()]
            prompts = iteration.prompt_token_stats
            prompts.total, prompts.computed, prompts.local_cache_hit = 30 + number, 14, 16
            prompts.cached_tokens, prompts.external_kv_transfer = 16 + number, number
            scheduler.prefix_cache_stats.queries, scheduler.prefix_cache_stats.hits = 30, 16
        if number % 11 == 0:
            iteration.max_num_generation_tokens_iter = [chance.randrange(1, 900)]
            iteration.n_params_iter = [chance.randrange(1, 4)]
            iteration.finished_requests = [
                FinishedRequestStats(
                    finish_reason=chance.choice(list(FinishReason)),
                    request_id=f"{number}.{n}",
                    num_prompt_tokens=chance.randrange(1, 9_000),
                    num_generation_tokens=chance.randrange(1, 900),
                    max_tokens_param=chance.choice([None, 16, 900]),
                    e2e_latency=chance.expovariate(1),
                    queued_time=chance.expovariate(9),
                    prefill_time=chance.expovariate(9),
                    inference_time=chance.expovariate(2),
                    decode_time=chance.expovariate(2),
                    mean_time_per_output_token=chance.expovariate(50),
                    num_cached_tokens=chance.randrange(0, 16),
                    num_preemptions=chance.randrange(0, 2),
                )
                for n in range(chance.randrange(1, 5))
            ]
        if number % 67 == 0:
            iteration.num_preempted_reqs = 1
        if number % 19 == 0:
            iteration.inter_token_latencies_iter = []
        made.append((scheduler if number % 7 else None, iteration))
    return made


@pytest.fixture
def other_series() -> Iterator[None]:
    """What is registered in this test goes again, and what it pushed out comes back."""
    before = list(REGISTRY._collector_to_names)
    yield
    for collector in set(REGISTRY._collector_to_names) - set(before):
        REGISTRY.unregister(collector)
    for collector in before:
        if collector not in REGISTRY._collector_to_names:
            REGISTRY.register(collector)


@pytest.mark.usefixtures("other_series")
async def test_steps_are_counted_the_same_together_and_one_by_one(vllm_engine: Engine) -> None:
    from vllm.v1.metrics.loggers import PrometheusStatLogger

    from llmserve.engine.vllm.step_metrics import StepMetrics

    llm = vllm_engine._core.llm  # type: ignore[attr-defined]
    assert any(isinstance(each, StepMetrics) for each in llm.logger_manager.stat_loggers)
    # Series of its own: those of the engine go on counting.
    metrics = StepMetrics(llm.vllm_config)
    empty = scrape()
    for scheduler, iteration in steps():
        metrics.record(scheduler, iteration)
    assert metrics._held, "nothing was held back"
    together = scrape()
    assert not metrics._held, "a scrape does not see what is held back"
    for scheduler, iteration in steps():
        PrometheusStatLogger.record(metrics, scheduler, iteration)
    one_by_one = scrape()
    assert difference(empty, together) == difference(together, one_by_one)
    assert difference(empty, together)["vllm:generation_tokens_total" + _labels(empty)] > 1000


def _labels(series: dict[str, float]) -> str:
    name = next(name for name in series if name.startswith("vllm:generation_tokens_total{"))
    return name[name.index("{") :]
