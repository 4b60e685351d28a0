"""Whole runs against a scripted server: delays come out as figures, failures as failures."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest
from loadtest_server import Answer, Script, Server, scripted

from llmserve.errors import ConfigError
from llmserve.loadtest.figures import Objective
from llmserve.loadtest.lengths import Lengths
from llmserve.loadtest.load import Step
from llmserve.loadtest.plan import Address, Endpoint, Load, LoadTestFailed, Plan, Workload
from llmserve.loadtest.results import Result, Sample
from llmserve.loadtest.session import run

FIVE = Lengths("fixed", 5)


class Silent:
    """Progress that nobody watches; it remembers the order of the steps."""

    def __init__(self) -> None:
        self.order: list[tuple[int, float, int]] = []

    def begin(self, target: int, level: float, number: int) -> None:
        self.order.append((target, level, number))

    def look(self, step: Step) -> None: ...

    def end(self, sample: Sample) -> None: ...


def closed(*levels: float, requests: int = 8, seconds: float | None = None) -> Load:
    return Load("closed", levels or (2,), seconds=seconds, requests=requests)


def plan(*servers: Server, endpoint: Endpoint = "chat", **more: Any) -> Plan:
    given = {
        "addresses": tuple(Address(each.url, None) for each in servers),
        "endpoint": endpoint,
        "workload": Workload(Lengths("fixed", 65), FIVE),
        "load": closed(),
        "seed": 1,
        "warmup": 0,
        "timeout": 20.0,
    }
    return Plan(**(given | more))


def measure(given: Plan, progress: Silent | None = None) -> Result:
    return asyncio.run(run(given, progress or Silent()))


# The first two requests measure how long a prompt is in tokens.
def after_calibration(script: Script) -> Script:
    return lambda number, body: Answer() if number < 2 else script(number - 2, body)


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_known_delays_come_out_as_latencies(endpoint: Endpoint) -> None:
    with scripted(Answer(tokens=6, first=0.2, gap=0.05)) as server:
        found = measure(plan(server, endpoint=endpoint, load=closed(requests=4)))
    figures = found.medians(0, 2)
    assert 195 < figures["median_ttft_ms"] < 350
    assert 45 < figures["median_itl_ms"] < 90
    assert 440 < figures["median_e2el_ms"] < 900
    # 5 gaps and, by the server's count, 9 tokens after the first.
    assert figures["median_tpot_ms"] == pytest.approx(
        (figures["median_e2el_ms"] - figures["median_ttft_ms"]) / 9, rel=0.2
    )
    assert found.samples[0].figures.latencies["itl"].count == 4 * 5
    assert found.models == ("scripted",)


def test_prompts_are_fitted_to_the_tokenizer_and_tokens_counted_by_the_server() -> None:
    with scripted() as server:
        found = measure(plan(server, body={"ignore_eos": True, "top_k": 3}))
    # The script's tokenizer has two tokens for a word, its template five.
    assert found.scale.per_unit == 2
    assert found.scale.overhead == 5
    sent = server.bodies[2:]
    assert len(sent) == 8
    assert {len(each["messages"][0]["content"].split()) for each in sent} == {30}
    assert sent[0]["max_tokens"] == 5
    assert sent[0]["stream_options"] == {"include_usage": True}
    assert (sent[0]["ignore_eos"], sent[0]["top_k"]) == (True, 3)
    figures = found.samples[0].figures
    assert (figures.prompt_tokens, figures.output_tokens) == (8 * 65, 8 * 10)


def test_failures_are_told_apart_and_are_no_successes() -> None:
    answers = [
        Answer(),
        Answer(status=429),
        Answer(status=503),
        Answer(error_after=2),
        Answer(cut_after=2),
        Answer(done=False),
        Answer(hang=True),
        Answer(kind="text/html"),
        Answer(tokens=0),
        Answer(status=429),
    ]
    with scripted(after_calibration(lambda number, _: answers[number])) as server:
        found = measure(plan(server, load=closed(1, requests=10), timeout=0.5))
    figures = found.samples[0].figures
    assert figures.completed == 1
    assert figures.output_tokens == 10
    assert figures.failures == {
        "HTTP 429": 2,
        "HTTP 503": 1,
        "error event": 1,
        "cut stream": 2,
        "timeout": 1,
        "not a stream of chunks": 1,
        "no token": 1,
    }
    said = {each.failure: each.detail for each in found.samples[0].records if each.failure}
    assert said["HTTP 429"] == "The script says no."
    assert said["error event"] == "it broke"


def test_a_server_without_counts_gives_no_token_rates() -> None:
    with scripted(Answer(usage=False)) as server:
        found = measure(plan(server))
    assert "output_throughput" not in found.medians(0, 2)
    assert found.medians(0, 2)["request_throughput"] > 0
    assert any("without token counts" in each for each in found.warnings())


def test_a_closed_loop_has_no_more_in_flight_than_asked_for() -> None:
    with scripted(Answer(gap=0.01)) as server:
        found = measure(plan(server, load=closed(3, requests=12)))
    records = found.samples[0].records
    times = [(each.sent, 1) for each in records] + [(each.end, -1) for each in records]
    running, most = 0, 0
    for _, change in sorted(times):
        running += change
        most = max(most, running)
    assert most == 3
    assert len(records) == 12
    # Connections are kept: one for calibration, which is used again, and two more.
    assert server.connections == 3


def test_a_closed_loop_ends_with_its_time() -> None:
    with scripted(Answer(gap=0.01)) as server:
        found = measure(plan(server, load=Load("closed", (2,), seconds=0.4, requests=None)))
    sample = found.samples[0]
    assert all(each.sent - sample.begin < 0.4 + 0.2 for each in sample.records)
    assert sample.figures.completed == len(sample.records) > 2


def test_an_open_loop_does_not_wait_for_answers() -> None:
    load = Load("open", (50,), seconds=None, requests=10, pattern="even")
    with scripted(after_calibration(lambda *_: Answer(first=0.6))) as server:
        found = measure(plan(server, load=load))
    sample = found.samples[0]
    assert [each.due - sample.begin for each in sample.records] == pytest.approx(
        [n / 50 for n in range(10)]
    )
    # All were sent before the first of them was answered.
    assert max(each.sent for each in sample.records) < min(each.end for each in sample.records)


def test_waiting_for_a_client_that_is_behind_is_part_of_the_latency() -> None:
    load = Load("open", (1000,), seconds=None, requests=4, pattern="even", max_in_flight=1)
    with scripted(after_calibration(lambda *_: Answer(tokens=1, first=0.2))) as server:
        found = measure(plan(server, load=load))
    sample = found.samples[0]
    # The fourth has waited for three others, and was itself answered after 0.2 s.
    assert sample.records[-1].ttft > 0.75
    assert sample.cost.late_most > 0.55
    assert any("behind its schedule" in each for each in found.warnings())


def test_the_seed_decides_what_is_sent() -> None:
    texts = []
    for seed in (1, 1, 2):
        with scripted() as server:
            measure(plan(server, seed=seed, load=closed(1, requests=3)))
        texts.append([each["messages"][0]["content"] for each in server.bodies[2:]])
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


def test_two_servers_take_turns_and_get_the_same_prompts() -> None:
    progress = Silent()
    with scripted(Answer(first=0.05)) as slow, scripted() as fast:
        found = measure(plan(slow, fast, load=closed(1, 2, requests=4), rounds=2), progress)
    assert progress.order == [
        (target, level, number) for level in (1, 2) for number in (0, 1) for target in (0, 1)
    ]
    mine, theirs = (
        [body["messages"][0]["content"] for body in server.bodies if body["max_tokens"] > 1]
        for server in (slow, fast)
    )
    assert sorted(mine) == sorted(theirs)
    assert len(set(mine)) == 16
    ratio = found.ratios(1)["median_ttft_ms"]
    assert 1 < ratio.least <= ratio.middle <= ratio.greatest


def test_objectives_that_are_missed() -> None:
    slow_at_two = after_calibration(lambda number, _: Answer(first=0.3 if number >= 4 else 0.0))
    given = {
        "load": closed(1, 2, requests=4),
        "objectives": (Objective("ttft", 0.25),),
        "require": 0.75,
    }
    with scripted(slow_at_two) as server:
        found = measure(plan(server, **given))
    assert found.missed() == [2]
    assert found.best(0.75) == 1
    relaxed = dataclasses.replace(found, plan=dataclasses.replace(found.plan, require=0.0))
    assert relaxed.missed() == []


def test_warm_up_requests_do_not_count() -> None:
    with scripted() as server:
        found = measure(plan(server, warmup=3))
    assert len(server.bodies) == 2 + 3 + 8
    assert found.samples[0].figures.completed == 8


def test_a_kept_connection_that_was_closed_is_replaced() -> None:
    with scripted(Answer(close=True)) as server:
        found = measure(plan(server, load=closed(1, requests=6)))
    assert found.samples[0].figures.failures == {}
    assert found.samples[0].figures.completed == 6


def test_a_server_that_is_not_there_ends_the_run() -> None:
    with scripted() as server:
        gone = plan(server)
    with pytest.raises(LoadTestFailed, match="No server answers"):
        measure(gone)


def test_a_server_that_refuses_ends_the_run_with_its_words() -> None:
    with (
        scripted(Answer(status=401)) as server,
        pytest.raises(LoadTestFailed, match="The script says no"),
    ):
        measure(plan(server))


def test_a_run_in_which_nothing_is_completed_has_failed() -> None:
    script = after_calibration(lambda *_: Answer(status=500))
    with scripted(script) as server, pytest.raises(LoadTestFailed, match="HTTP 500"):
        measure(plan(server))


def test_the_key_is_sent_and_never_shown() -> None:
    with scripted() as server:
        address = Address(server.url + "/v1/", "other", "sk-secret")
        given = plan(server, addresses=(address,))
        measure(given)
    assert "Authorization: Bearer sk-secret\r\n" in server.heads[0]
    assert server.heads[0].startswith("POST /v1/chat/completions ")
    assert server.bodies[0]["model"] == "other"
    assert "sk-secret" not in repr(given)


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://x", "http://", "http://me:pw@host", "http://x/?a"]
)
def test_an_address_that_is_none(url: str) -> None:
    given = Plan((Address(url, None),), "chat", Workload(FIVE, FIVE), closed(), seed=1)
    with pytest.raises(ConfigError) as raised:
        measure(given)
    assert "pw" not in str(raised.value)
