"""Histograms fed with whole requests, and log lines that cannot be forged."""

from __future__ import annotations

import json
import logging
import logging.config

import pytest
from prometheus_client.parser import text_string_to_metric_families

from llmserve.gateway.entry import Entry
from llmserve.observability.logging import JsonFormatter, TextFormatter, configure_logging
from llmserve.observability.metrics import Metrics, State
from llmserve.settings import LoggingSettings
from llmserve.types import Meter, Outcome

STATE = State(model="m", ready=True, draining=False, running=2, restarts=1)


def samples(metrics: Metrics) -> dict[str, float]:
    text = metrics.render(STATE).decode()
    return {
        sample.name + json.dumps(sample.labels, sort_keys=True): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_meter_shares_the_time_of_tokens_that_come_together() -> None:
    meter = Meter()
    meter.add_tokens(1, 10.0)
    meter.add_tokens(4, 10.4)
    meter.add_tokens(0, 99.0)
    assert meter.completion_tokens == 5
    assert (meter.first_token_at, meter.last_token_at) == (10.0, 10.4)
    assert sum(meter.gap_counts) == 4
    assert meter.gap_seconds == pytest.approx(0.4)


def test_metrics_of_a_request() -> None:
    metrics = Metrics(engine="fake")
    entry = Entry("id", "/generate", model="m")
    entry.meter.prompt_tokens = 7
    entry.meter.add_tokens(1, entry.started + 0.2)
    entry.meter.add_tokens(3, entry.started + 0.44)
    entry.end(Outcome.COMPLETED)
    metrics.closed(entry)
    metrics.closed(Entry("id", "/generate", outcome=Outcome.INVALID))
    found = samples(metrics)
    model = '{"model": "m"}'
    assert found["llmserve_prompt_tokens_total" + model] == 7
    assert found["llmserve_completion_tokens_total" + model] == 4
    assert found["llmserve_time_to_first_token_seconds_sum" + model] == pytest.approx(0.2)
    assert found["llmserve_inter_token_latency_seconds_count" + model] == 3
    assert found["llmserve_inter_token_latency_seconds_sum" + model] == pytest.approx(0.24)
    assert found['llmserve_inter_token_latency_seconds_bucket{"le": "0.1", "model": "m"}'] == 3
    assert found["llmserve_requests_in_flight" + model] == 2
    assert found["llmserve_engine_restarts_total{}"] == 1
    assert samples(metrics)["llmserve_engine_restarts_total{}"] == 1
    invalid = '{"model": "-", "outcome": "invalid", "route": "/generate"}'
    assert found["llmserve_requests_total" + invalid] == 1


def record(message: str, *args: object) -> logging.LogRecord:
    return logging.LogRecord("llmserve.x", logging.INFO, "f", 1, message, args, None)


def test_a_log_line_is_one_line() -> None:
    forged = "x\n12:00:00 ERROR admin: owned\r\x1b[31m\u2028"
    text = TextFormatter().format(record("%s", forged))
    assert len(text.splitlines()) == 1
    assert "\x1b" not in text
    line = JsonFormatter().format(record("%s", forged))
    assert json.loads(line)["message"] == forged
    assert len(line.splitlines()) == 1


def test_the_access_log_stays_off_when_a_library_configures_logging(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """vLLM does, when it is imported, and that enables every logger again."""
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    access = logging.getLogger("llmserve.access")
    try:
        configure_logging(LoggingSettings(access=False))
        logging.config.dictConfig({"version": 1, "disable_existing_loggers": False})
        assert not access.isEnabledFor(logging.INFO)
    finally:
        access.setLevel(logging.NOTSET)
