"""The definitions: latencies, rates, goodput, ratios."""

from __future__ import annotations

import pytest

from llmserve.errors import ConfigError
from llmserve.loadtest.compare import medians, ratios
from llmserve.loadtest.figures import (
    Objective,
    Record,
    figures,
    parse_objective,
    percentile,
    spread,
)
from llmserve.loadtest.selfwatch import Cost, answer_warnings


def record(*arrivals: float, due: float = 0.0, tokens: int | None = None, **more: object) -> Record:
    return Record(
        0,
        due=due,
        sent=due,
        arrivals=list(arrivals),
        end=max(arrivals, default=due),
        prompt_tokens=7,
        output_tokens=len(arrivals) if tokens is None else tokens,
        **more,  # type: ignore[arg-type]
    )


def test_latencies_of_one_request() -> None:
    one = record(10.5, 10.6, 10.8, due=10.0, tokens=4)
    assert one.ttft == pytest.approx(0.5)
    assert one.e2el == pytest.approx(0.8)
    assert one.itl == pytest.approx([0.1, 0.2])
    # Tokens as the server counts them, not chunks: three intervals between four tokens.
    assert one.tpot == pytest.approx(0.1)
    assert record(1.0).tpot is None


def test_latencies_count_from_when_a_request_was_due() -> None:
    late = record(3.0, due=1.0)
    late.sent = 2.5
    assert late.ttft == pytest.approx(2.0)


def test_percentiles_are_interpolated() -> None:
    assert percentile([1.0, 2.0, 3.0, 4.0], 50) == 2.5
    assert percentile([1.0, 2.0, 3.0, 4.0], 99) == pytest.approx(3.97)
    assert percentile([5.0], 90) == 5.0
    values = spread([4.0, 1.0, 3.0, 2.0])
    assert (values.mean, values.median, values.most, values.count) == (2.5, 2.5, 4.0, 4)


def test_rates_are_over_the_time_to_the_last_end() -> None:
    found = figures([record(1.0, 2.0), record(3.0, 4.0, 5.0)], begin=0.0).flat()
    assert found["duration"] == 5.0
    assert found["request_throughput"] == pytest.approx(0.4)
    assert found["output_throughput"] == pytest.approx(1.0)
    assert found["total_token_throughput"] == pytest.approx((5 + 14) / 5)
    assert found["median_ttft_ms"] == pytest.approx(2000)
    assert found["request_goodput"] is None


def test_a_failed_request_counts_as_nothing_but_a_failure() -> None:
    failed = [
        record(1.0, 9.0, failure="cut stream"),
        Record(1, due=0.0, end=0.1, failure="HTTP 429"),
        Record(2, due=0.0, end=0.1, failure="HTTP 429"),
    ]
    found = figures([record(1.0, 2.0), *failed], 0.0, [Objective("ttft", 10.0)])
    assert found.completed == 1
    assert found.failures == {"cut stream": 1, "HTTP 429": 2}
    assert found.output_tokens == 2
    assert found.latencies["itl"].count == 1
    assert found.attained == 0.25
    # The time that a failure took is not left out.
    assert found.seconds == 9.0


def test_without_token_counts_there_are_no_token_rates() -> None:
    uncounted = record(1.0, 2.0)
    uncounted.output_tokens = None
    found = figures([record(1.0, 2.0), uncounted], 0.0)
    assert found.flat()["output_throughput"] is None
    assert found.flat()["total_token_throughput"] is None
    assert found.flat()["request_throughput"] == 1.0
    assert "without token counts" in answer_warnings([record(1.0), uncounted])["uncounted"]


@pytest.mark.parametrize(
    ("text", "metric", "seconds"),
    [
        ("ttft:500ms", "ttft", 0.5),
        ("itl:50", "itl", 0.05),
        ("tpot:1.5ms", "tpot", 0.0015),
        ("e2e:2s", "e2el", 2),
        ("e2el:2s", "e2el", 2),
    ],
)
def test_objectives_are_read(text: str, metric: str, seconds: float) -> None:
    found = parse_objective(text, "--slo")
    assert (found.metric, found.seconds) == (metric, pytest.approx(seconds))


@pytest.mark.parametrize("text", ["ttft", "ttft:", "ttft:0ms", "speed:5ms", "ttft:-1ms", "ttft:5h"])
def test_objectives_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="--slo"):
        parse_objective(text, "--slo")


def test_goodput_counts_requests_that_meet_all_objectives() -> None:
    objectives = [Objective("ttft", 0.5), Objective("itl", 0.1)]
    both = record(0.5, 0.6, 0.7)
    slow_begin = record(0.6, 0.7, 0.8)
    one_gap = record(0.5, 0.6, 0.9)
    found = figures([both, slow_begin, one_gap], 0.0, objectives)
    assert found.good == 1
    assert found.attained == pytest.approx(1 / 3)
    assert found.flat()["request_goodput"] == pytest.approx(1 / 0.9)


def test_a_single_token_has_no_gap_that_could_be_too_long() -> None:
    one = record(0.1)
    assert Objective("itl", 0.001).met(one)
    assert Objective("tpot", 0.001).met(one)
    assert not Objective("e2el", 0.05).met(one)


def test_medians_are_over_rounds_and_leave_out_what_a_round_lacks() -> None:
    rounds = [{"a": 1.0, "b": 5.0}, {"a": 9.0, "b": None}, {"a": 2.0, "b": 6.0}]
    assert medians(rounds) == {"a": 2.0}


def test_ratios_pair_the_rounds() -> None:
    ours = [{"a": 2.0, "zero": 0.0}, {"a": 30.0, "zero": 1.0}, {"a": 4.0, "zero": 1.0}]
    theirs = [{"a": 1.0, "zero": 1.0}, {"a": 10.0, "zero": 1.0}, {"a": 8.0, "zero": 1.0}]
    found = ratios(ours, theirs)
    assert (found["a"].middle, found["a"].least, found["a"].greatest) == (2.0, 0.5, 3.0)
    assert "zero" not in found


QUIET = Cost(0.1, 0.001, 0.002, 0.001, 0.002, 0)


def test_the_load_generator_says_when_it_was_in_the_way() -> None:
    assert QUIET.warnings() == {}
    busy = Cost(0.95, 0.3, 0.4, 0.0, 0.0, 0).warnings()
    assert list(busy) == ["busy"]
    assert "95% of a core" in busy["busy"]
    assert "400 ms" in Cost(0.2, 0.3, 0.4, 0.0, 0.0, 0).warnings()["stalled"]
    assert "p99 50 ms" in Cost(0.2, 0.0, 0.0, 0.05, 0.1, 0).warnings()["late"]
    assert "3 requests" in Cost(0.2, 0.0, 0.0, 0.0, 0.0, 3).warnings()["resent"]


def test_answers_that_end_early_are_said() -> None:
    short = [record(1.0, 2.0, asked_tokens=10)]
    assert "2 tokens on average, where 10" in answer_warnings(short)["early"]
    assert answer_warnings([record(1.0, 2.0, asked_tokens=2)]) == {}
