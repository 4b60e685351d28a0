"""The stream rule: honest statuses, no false ends, keep-alive, bounded waits."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from llmserve.engine.fake import Reply, Script
from llmserve.errors import Draining
from tests.http.harness import poll, running

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}], "stream": True}
STREAMS: dict[str, dict[str, Any]] = {
    "/generate/stream": {"prompt": "Hello"},
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"prompt": "Hello", "stream": True},
    "/v1/responses": {"input": "Hello", "stream": True},
    "/v1/messages": CHAT | {"max_tokens": 40},
}


def with_text(path: str, text: str) -> dict[str, Any]:
    return json.loads(json.dumps(STREAMS[path]).replace("Hello", text))  # type: ignore[no-any-return]


@pytest.mark.parametrize("path", STREAMS)
def test_a_failure_after_the_first_byte_is_an_error_event_and_no_end(path: str) -> None:
    with running(Script(fail_on="BOOM", fail_after_tokens=3)) as app:
        with app.stream("POST", path, json=with_text(path, "BOOM")) as response:
            assert response.status_code == 200
            text = response.read().decode()
        last = text.strip().split("\n\n")[-1]
        assert '"error"' in last
        assert "The server failed to answer this request." in last
        assert "[DONE]" not in text
        assert "event: done" not in text
        assert "message_stop" not in text
        assert "response.completed" not in text
        assert app.outcomes() == {"failed": 1}


@pytest.mark.parametrize("path", STREAMS)
def test_a_failure_before_the_first_byte_keeps_its_status(path: str) -> None:
    with running(Script(fail_on="BOOM")) as app:
        assert app.post(path, json=with_text(path, "BOOM")).status_code == 500
        assert app.post(path, json=with_text(path, "word " * 9000)).status_code == 400
        assert app.outcomes() == {"failed": 1, "invalid": 1}


@pytest.mark.parametrize("path", STREAMS)
def test_a_slow_first_token_is_bridged_by_comments(path: str) -> None:
    script = Script(prefill_seconds=1.0)
    server = {"first_chunk_wait_s": 0.1, "keep_alive_s": 0.2}
    with running(script, server=server) as app:
        with app.stream("POST", path, json=STREAMS[path]) as response:
            assert response.headers["cache-control"] == "no-cache"
            assert response.headers["x-accel-buffering"] == "no"
            text = response.read().decode()
        assert text.count(": keep-alive\n") >= 1
        assert app.outcomes() == {"completed": 1}


def test_comments_do_not_break_clients() -> None:
    import openai

    script = Script(prefill_seconds=0.5, replies=(Reply("", "Hi there."),))
    server = {"first_chunk_wait_s": 0.05, "keep_alive_s": 0.1}
    with running(script, server=server) as app:
        client = openai.OpenAI(base_url=f"{app.url}/v1", api_key="x")
        chunks = client.chat.completions.create(
            model="default", messages=CHAT["messages"], stream=True
        )
        assert "".join(c.choices[0].delta.content or "" for c in chunks) == "Hi there."


def test_sdk_takes_no_cut_stream_for_success() -> None:
    import openai

    with running(Script(fail_on="BOOM", fail_after_tokens=3)) as app:
        client = openai.OpenAI(base_url=f"{app.url}/v1", api_key="x")
        stream = client.chat.completions.create(
            model="default", messages=[{"role": "user", "content": "BOOM"}], stream=True
        )
        with pytest.raises(openai.APIError):
            list(stream)


@pytest.mark.parametrize("path", STREAMS)
def test_a_request_past_its_time_ends_in_an_error(path: str) -> None:
    script = Script(stall_on="STALL", stall_after_tokens=2)
    with running(script, server={"request_timeout_s": 0.3, "first_chunk_wait_s": 0.1}) as app:
        text = app.post(path, json=with_text(path, "STALL")).text
        assert "longer than the limit of 0.3 s" in text
        assert "[DONE]" not in text
        body = {k: v for k, v in with_text(path, "STALL").items() if k != "stream"}
        reply = app.post(path.removesuffix("/stream"), json=body)
        assert reply.status_code == 504
        assert app.outcomes() == {"timeout": 2}
        poll(lambda: app.get("/healthz").json()["engine"]["running"] == 0)


@pytest.mark.parametrize("path", STREAMS)
def test_a_stopped_request_says_so(path: str) -> None:
    script = Script(stall_on="STALL", stall_after_tokens=2)
    with running(script, server={"keep_alive_s": 0.2}) as app:
        with app.stream("POST", path, json=with_text(path, "STALL")) as response:
            lines = response.iter_lines()
            next(lines)
            app.call(app.services.gateway.stop_all, lambda: Draining("Shutting down."))
            assert "Shutting down." in "".join(lines)
        assert app.outcomes() == {"cancelled": 1}


@pytest.mark.parametrize("path", STREAMS)
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_the_engine(
    path: str, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with running(Script(stall_on="STALL", stall_after_tokens=2)) as app:
        body = with_text(path, "STALL")
        if not stream:
            body.pop("stream", None)
            path = path.removesuffix("/stream")
        timeout = httpx.Timeout(5, read=0.3)
        with pytest.raises(httpx.ReadTimeout), httpx.Client(timeout=timeout) as client:
            client.post(app.url + path, json=body)
        poll(lambda: app.get("/healthz").json()["requests_in_flight"] == 0)
        poll(lambda: app.get("/healthz").json()["engine"]["running"] == 0)
        poll(lambda: app.outcomes() == {"disconnected": 1})
        assert app.sample("llmserve_completion_tokens_total") == 2
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


def test_a_reader_that_stalls_is_let_go() -> None:
    import socket

    script = Script(replies=(Reply("", "word " * 200_000),), max_model_len=1_000_000)
    with running(script, server={"slow_reader_timeout_s": 0.5}) as app:
        with socket.create_connection(("127.0.0.1", app.port)) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            content = json.dumps({"prompt": "x"}).encode()
            head = f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n"
            request = f"POST /generate/stream HTTP/1.1\r\nHost: x\r\n{head}\r\n".encode()
            connection.sendall(request + content)
            poll(lambda: app.outcomes() == {"disconnected": 1})
        poll(lambda: app.get("/healthz").json()["engine"]["running"] == 0)


def test_event_ids_count_and_deltas_make_the_text() -> None:
    with running(Script(replies=(Reply("", "Grüße, 世界 🙂!"),))) as app:
        whole = app.post("/generate", json={"prompt": "x"}).json()
        lines = app.post("/generate/stream", json={"prompt": "x"}).text.split("\n")
        ids = [int(line[4:]) for line in lines if line.startswith("id: ")]
        assert ids == list(range(len(ids)))
        data = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
        assert "".join(event.get("text", "") for event in data) == whole["text"]
        assert whole["text"] == "Grüße, 世界 🙂!"
        tokens = sum(event.get("tokens", 0) for event in data)
        assert tokens == whole["usage"]["completion_tokens"]
