"""Admission, keys, names, readiness, envelopes: everything before the engine."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from llmserve.engine.fake import Script
from llmserve.types import Stage
from tests.conformance.validator import assert_openai
from tests.http.harness import App, poll, running

STALL = Script(stall_on="STALL")
BODIES: dict[str, dict[str, Any]] = {
    "/generate": {"prompt": "STALL"},
    "/generate/stream": {"prompt": "STALL"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "STALL"}]},
    "/v1/completions": {"prompt": "STALL"},
    "/v1/responses": {"input": "STALL"},
    "/v1/messages": {"messages": [{"role": "user", "content": "STALL"}], "max_tokens": 5},
}


def assert_error(path: str, reply: Any) -> None:
    assert_openai("anthropic_error" if path.startswith("/v1/messages") else "error", reply.json())


def test_past_the_limit_is_503_with_retry_after_and_never_a_200() -> None:
    server = {"first_chunk_wait_s": 0.05}
    with running(STALL, admission={"max_running": 1, "max_queue": 0}, server=server) as app:
        with app.stream("POST", "/generate/stream", json={"prompt": "STALL"}) as response:
            assert response.status_code == 200
            for path, body in BODIES.items():
                for stream in (False, True):
                    sent = body | ({"stream": True} if stream and "generate" not in path else {})
                    reply = app.post(path, json=sent)
                    assert reply.status_code == 503, path
                    assert int(reply.headers["retry-after"]) >= 1
                    assert_error(path, reply)
        poll(lambda: app.get("/healthz").json()["requests_in_flight"] == 0)
        assert app.outcomes() == {"rejected": 12, "disconnected": 1}
        assert app.post("/generate", json={"prompt": "x"}).status_code == 200


def test_draining_refuses_new_work_and_readiness() -> None:
    with running(STALL) as app:
        app.services.gateway.admission.draining = True
        for path, body in BODIES.items():
            reply = app.post(path, json=body)
            assert reply.status_code == 503
            assert reply.headers["retry-after"]
            assert_error(path, reply)
        ready = app.get("/readyz")
        assert ready.status_code == 503
        assert ready.json()["stage"] == "draining"
        assert app.get("/livez").status_code == 200


def test_loading_is_live_and_not_ready() -> None:
    script = Script(stages=((Stage.LOADING, 30.0),))
    with running(script, ready=False) as app:
        poll(lambda: app.get("/readyz").json()["stage"] == "loading")
        reply = app.get("/ready")
        assert reply.status_code == 503
        assert reply.json()["progress"] == 0.5
        assert app.get("/livez").json() == app.get("/health").json() == {"status": "live"}
        assert app.get("/healthz").json()["engine"] is None
        assert app.get("/v1/models").status_code == 503
        for path, body in BODIES.items():
            reply = app.post(path, json=body)
            assert reply.status_code == 503
            assert_error(path, reply)


def test_an_engine_that_dies_is_restarted() -> None:
    with running(Script(die_after_tokens=5)) as app:
        text = app.post("/generate/stream", json={"prompt": "x"}).text
        assert '"engine_died"' in text
        assert "event: done" not in text
        poll(lambda: app.get("/healthz").json()["engine_restarts"] == 1)
        poll(lambda: app.get("/readyz").status_code == 200)
        assert app.sample("llmserve_engine_restarts_total") == 1
        assert app.outcomes() == {"failed": 1}


def test_an_engine_that_fails_to_start_is_tried_again() -> None:
    calls: list[int] = []

    def text(_: str) -> str | None:
        calls.append(1)
        return None

    assert text("") is None
    runtime = {"engine": "fake", "restart_first_s": 0.01, "restart_max_s": 0.02, "max_restarts": 2}
    with running(Script(failing_starts=1), ready=False, runtime=runtime) as app:
        poll(lambda: app.get("/readyz").json()["stage"] == "failed")
        assert "failed to start" in app.get("/readyz").json()["reason"]
        assert app.get("/livez").status_code == 200


@pytest.fixture(scope="module")
def guarded() -> Any:
    with running(auth={"api_keys": ["right"]}, ready=False) as app:
        poll(lambda: app.get("/readyz").status_code == 200)
        yield app


def test_a_key_never_shows_in_the_log(guarded: App, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        guarded.post("/generate", json={"prompt": "x"}, headers={"x-api-key": "right"})
        guarded.post("/generate", json={"prompt": "x"}, headers={"x-api-key": "guessed"})
    assert "right" not in caplog.text
    assert "guessed" not in caplog.text


def test_request_ids_are_kept_when_sane() -> None:
    with running() as app:
        reply = app.post("/generate", json={"prompt": "x"}, headers={"x-request-id": "abc-1"})
        assert reply.headers["x-request-id"] == reply.json()["id"] == "abc-1"
        reply = app.get("/livez", headers={"x-request-id": "a b\tc" * 40})
        assert len(reply.headers["x-request-id"]) == 32


def test_cors_is_off_by_default_and_explicit() -> None:
    preflight = {"origin": "https://chat.example", "access-control-request-method": "POST"}
    with running() as app:
        reply = app.options("/generate", headers=preflight)
        assert "access-control-allow-origin" not in reply.headers
    server = {"cors_origins": ["https://chat.example"]}
    with running(server=server, auth={"api_keys": ["k"]}, ready=False) as app:
        poll(lambda: app.get("/readyz").status_code == 200)
        reply = app.options("/generate", headers=preflight)
        assert reply.headers["access-control-allow-origin"] == "https://chat.example"
        other = app.options("/generate", headers=preflight | {"origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers


def test_metrics_can_be_switched_off() -> None:
    with running(metrics={"enabled": False}) as app:
        assert app.get("/metrics").status_code == 404


def test_concurrent_requests_are_each_counted_once() -> None:
    with running(Script(seconds_per_token=0.001)) as app:
        threads = [
            threading.Thread(target=app.post, args=("/generate",), kwargs={"json": {"prompt": "x"}})
            for _ in range(20)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert app.outcomes() == {"completed": 20}
        assert app.sample("llmserve_requests_in_flight") == 0


def test_a_body_that_never_comes_is_408() -> None:
    import socket

    with (
        running(server={"body_timeout_s": 0.2}) as app,
        socket.create_connection(("127.0.0.1", app.port), timeout=5) as connection,
    ):
        head = "Content-Type: application/json\r\nContent-Length: 100\r\n"
        connection.sendall(f"POST /generate HTTP/1.1\r\nHost: x\r\n{head}\r\n".encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 408")
