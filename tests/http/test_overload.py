"""Overload, deadlines and cancelling, as a client sees them over a real socket."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import openai
import pytest

from llmserve.engine.fake import Reply, Script
from tests.conformance.validator import assert_openai
from tests.http.harness import App, poll, running

STALL = Script(stall_on="STALL")
CHAT = {"messages": [{"role": "user", "content": "STALL"}]}
STREAMS: dict[str, dict[str, Any]] = {
    "/generate/stream": {"prompt": "STALL"},
    "/v1/chat/completions": CHAT | {"stream": True},
    "/v1/completions": {"prompt": "STALL", "stream": True},
    "/v1/responses": {"input": "STALL", "stream": True},
    "/v1/messages": CHAT | {"max_tokens": 5, "stream": True},
}
WHOLE: dict[str, dict[str, Any]] = {
    "/generate": {"prompt": "STALL"},
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"prompt": "STALL"},
    "/v1/responses": {"input": "STALL"},
    "/v1/messages": CHAT | {"max_tokens": 5},
}


def admission(app: App) -> Any:
    return app.services.gateway.admission


@contextmanager
def in_background(app: App, path: str, body: Any, **options: Any) -> Iterator[Any]:
    """A request that is under way during the block; the future of its reply."""
    with ThreadPoolExecutor(1) as pool, httpx.Client(base_url=app.url, timeout=20) as client:
        before = admission(app).in_flight
        future = pool.submit(client.post, path, json=body, **options)
        poll(lambda: admission(app).in_flight == before + 1 or future.done())
        yield future


def cancel(app: App, **headers: str) -> list[dict[str, Any]]:
    """Cancel everything that is under way."""
    jobs: list[dict[str, Any]] = app.get("/v1/requests", headers=headers).json()["data"]
    for job in jobs:
        assert app.delete(f"/v1/requests/{job['id']}", headers=headers).status_code == 200
    return jobs


@pytest.mark.parametrize("path", STREAMS)
def test_a_waiting_stream_sends_no_header_before_its_turn(path: str) -> None:
    server = {"first_chunk_wait_s": 0.05, "keep_alive_s": 0.05}
    with running(STALL, admission={"max_running": 1, "max_queue": 1}, server=server) as app:
        with app.stream("POST", "/generate/stream", json={"prompt": "STALL"}) as first:
            assert first.status_code == 200
            with in_background(app, path, STREAMS[path]) as waiting:
                assert app.post("/generate", json={"prompt": "x"}).status_code == 503
                # Many times what a stream in the engine waits for a chunk.
                with pytest.raises(TimeoutError):
                    waiting.result(0.4)
                (job,) = [j for j in app.get("/v1/requests").json()["data"] if j["route"] == path][
                    -1:
                ]
                assert job["stage"] == "queued"
                app.delete(f"/v1/requests/{job['id']}")
                reply = waiting.result()
        assert reply.status_code == 499
        assert_error(path, reply)


def assert_error(path: str, reply: httpx.Response) -> None:
    assert_openai("anthropic_error" if path.startswith("/v1/messages") else "error", reply.json())


def test_a_client_that_leaves_the_queue_frees_its_place() -> None:
    with running(STALL, admission={"max_running": 1, "max_queue": 1}) as app:
        with app.stream("POST", "/generate/stream", json={"prompt": "STALL"}):
            for path, body in (*STREAMS.items(), *WHOLE.items()):
                with pytest.raises(httpx.ReadTimeout):
                    app.post(path, json=body, timeout=0.3)
                poll(lambda: admission(app).waiting == 0)
        poll(lambda: admission(app).in_flight == 0)
        assert app.outcomes() == {"disconnected": 11}


def test_refusals_are_quick_and_say_when_to_come_back() -> None:
    with running(STALL, admission={"max_running": 1, "max_queue": 0}) as app:
        with in_background(app, "/generate", {"prompt": "STALL"}):
            times, told = [], []
            for _ in range(50):
                start = time.perf_counter()
                reply = app.post("/v1/chat/completions", json=CHAT)
                times.append(time.perf_counter() - start)
                assert reply.status_code == 503
                assert reply.json()["error"]["code"] == "server_is_overloaded"
                told.append(int(reply.headers["retry-after"]))
                assert 0 < float(reply.headers["retry-after-ms"]) / 1000 <= told[-1]
            assert sorted(times)[25] < 0.02
            assert told == sorted(told), "each is promised a later place"
            assert 1 <= told[0] < told[-1] <= 60
            cancel(app)
        assert app.sample("llmserve_refused_requests_total", code="server_is_overloaded") == 50


def test_what_can_never_fit_is_400_also_when_the_server_is_full() -> None:
    with running(STALL, admission={"max_running": 1, "max_queue": 0}) as app:  # noqa: SIM117
        with in_background(app, "/generate", {"prompt": "STALL"}):
            long = "x" * (4096 * app.services.supervisor.engine().info.chars_per_token + 1)
            for path, body in (
                ("/generate", {"prompt": long}),
                ("/v1/completions", {"prompt": ["short", long]}),
                ("/v1/chat/completions", {"messages": [{"role": "user", "content": long}]}),
                ("/v1/messages", CHAT | {"system": long, "max_tokens": 5}),
                ("/v1/responses", {"input": long}),
            ):
                reply = app.post(path, json=body)
                assert reply.status_code == 400, (path, reply.text)
            cancel(app)


@pytest.mark.parametrize(("path", "body"), WHOLE.items())
def test_a_request_ends_at_its_own_deadline(path: str, body: dict[str, Any]) -> None:
    with running(STALL) as app:
        for sent, headers in (
            (body | {"timeout_s": 0.1}, {}),
            (body, {"x-request-timeout": "0.1"}),
            (body | {"timeout_s": 30}, {"x-request-timeout": "0.1"}),
        ):
            reply = app.post(path, json=sent, headers=headers)
            assert reply.status_code == 504, reply.text
            assert_error(path, reply)
            assert "the limit of 0.1 s" in reply.text
        assert admission(app).in_flight == 0
        assert app.outcomes() == {"timeout": 3}


@pytest.mark.parametrize(("path", "body"), STREAMS.items())
def test_a_stream_past_its_deadline_ends_in_an_error_event(path: str, body: dict[str, Any]) -> None:
    script = Script(stall_on="STALL", stall_after_tokens=3)
    with running(script) as app:
        reply = app.post(path, json=body | {"timeout_s": 0.2})
        assert reply.status_code == 200
        assert "deadline" in reply.text.split("\n\n")[-2] or "timeout_error" in reply.text
        assert "[DONE]" not in reply.text
        assert app.outcomes() == {"timeout": 1}


def test_deadlines_are_checked() -> None:
    with running(server={"request_timeout_s": 20}) as app:
        for sent, headers, param in (
            ({"timeout_s": 21}, {}, "timeout_s"),
            ({"timeout_s": 0}, {}, "timeout_s"),
            ({"timeout_s": "5"}, {}, "timeout_s"),
            ({}, {"x-request-timeout": "soon"}, "x-request-timeout"),
            ({}, {"x-request-timeout": "-1"}, "x-request-timeout"),
            ({}, {"x-request-timeout": "nan"}, "x-request-timeout"),
        ):
            for path, body in (
                ("/generate", {"prompt": "x"}),
                ("/v1/completions", {"prompt": "x"}),
            ):
                reply = app.post(path, json=body | sent, headers=headers)
                assert reply.status_code == 400, (sent, reply.text)
                assert reply.json()["error"]["param"] == param


def test_waiting_for_a_turn_has_its_own_limit() -> None:
    queue = {"max_running": 1, "queue_timeout_s": 0.1}
    with running(STALL, admission=queue) as app:  # noqa: SIM117
        with in_background(app, "/generate", {"prompt": "STALL"}):
            for path, body in (*WHOLE.items(), *STREAMS.items()):
                reply = app.post(path, json=body)
                assert reply.status_code == 504
                assert_error(path, reply)
                if not path.startswith("/v1/messages"):
                    assert reply.json()["error"]["code"] == "queue_timeout"
            cancel(app)


def test_time_in_the_engine_has_its_own_limit() -> None:
    with running(STALL, server={"generation_timeout_s": 0.1}) as app:
        reply = app.post("/generate", json={"prompt": "STALL"})
        assert reply.status_code == 504
        assert "in the engine for longer than the limit of 0.1 s" in reply.text


def test_requests_under_way_are_listed_and_cancelled() -> None:
    script = Script(stall_on="STALL", stall_after_tokens=3)
    with running(script, admission={"max_running": 1}) as app:
        headers = {"x-request-id": "mine-1"}
        with in_background(app, "/v1/chat/completions", CHAT, headers=headers) as first:
            poll(lambda: app.get("/v1/requests").json()["data"][0]["stage"] == "decode")
            with in_background(app, "/generate", {"prompt": "STALL"}) as second:
                one, two = app.get("/v1/requests").json()["data"]
                assert (one["id"], one["route"]) == ("mine-1", "/v1/chat/completions")
                assert (one["key"], one["object"]) == ("anonymous", "request")
                assert one["model"] == app.services.gateway.router.names[0]
                assert one["completion_tokens"] == 3
                assert one["age_s"] >= 0
                assert (two["stage"], two["completion_tokens"]) == ("queued", 0)
                assert app.delete("/v1/requests/mine-1").json()["cancelled"] is True
                assert first.result().status_code == 499
                assert first.result().headers["x-should-retry"] == "false"
                assert_openai("error", first.result().json())
                poll(lambda: cancel(app) != [])
                assert second.result().status_code == 499
        assert app.get("/v1/requests").json()["data"] == []
        assert app.delete("/v1/requests/mine-1").status_code == 404
        assert app.outcomes() == {"cancelled": 2}


@pytest.mark.parametrize(("path", "body"), STREAMS.items())
def test_a_cancelled_stream_ends_in_an_error_event(path: str, body: dict[str, Any]) -> None:
    script = Script(stall_on="STALL", stall_after_tokens=3)
    with running(script) as app:
        with in_background(app, path, body) as future:
            poll(lambda: app.get("/v1/requests").json()["data"][0]["completion_tokens"] == 3)
            # The first chunk has gone out, so the status has as well.
            poll(lambda: cancel(app) != [])
            reply = future.result()
        assert reply.status_code == 200
        assert "cancelled" in reply.text.strip().split("\n\n")[-1]
        assert "[DONE]" not in reply.text
        assert app.outcomes() == {"cancelled": 1}


def test_the_sdk_gives_up_on_a_cancelled_request_and_retries_an_overloaded_one() -> None:
    with running(STALL, admission={"max_running": 1, "max_queue": 0}) as app:
        client = openai.OpenAI(base_url=f"{app.url}/v1", api_key="x")
        ask = client.chat.completions.create
        stalled = in_background(app, "/generate", {"prompt": "STALL"})
        with stalled, ThreadPoolExecutor(1) as pool:
            reply = pool.submit(
                ask, model="default", messages=[{"role": "user", "content": "Hello"}]
            )
            poll(lambda: app.outcomes().get("rejected", 0) >= 1)
            cancel(app)
            assert reply.result().choices[0].finish_reason == "stop"
        with ThreadPoolExecutor(1) as pool:
            reply = pool.submit(ask, model="default", messages=CHAT["messages"])
            poll(lambda: cancel(app) != [])
            with pytest.raises(openai.APIStatusError) as caught:
                reply.result()
            assert caught.value.status_code == 499
        assert app.outcomes()["cancelled"] == 2


def test_every_sdk_client_gets_its_answer_through_an_overload() -> None:
    """Default retries are two. Forty clients at once, places for eight."""
    script = Script(seconds_per_token=0.004, replies=(Reply("", "one two three four five"),))
    settings = {"max_running": 4, "max_queue": 4}
    with running(script, admission=settings) as app, ExitStack() as stack:
        gate = threading.Barrier(40)

        def ask(_: int) -> str:
            client = stack.enter_context(openai.OpenAI(base_url=f"{app.url}/v1", api_key="x"))
            gate.wait()
            reply = client.chat.completions.create(
                model="default", messages=[{"role": "user", "content": "Count"}]
            )
            return reply.choices[0].message.content or ""

        # The rate is known once something has finished.
        for _ in range(8):
            app.post("/generate", json={"prompt": "Count"})
        with ThreadPoolExecutor(40) as pool:
            answers = list(pool.map(ask, range(40)))
        assert set(answers) == {"one two three four five"}
        assert app.outcomes()["rejected"] > 0
