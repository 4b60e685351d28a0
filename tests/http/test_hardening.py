"""The connection before the application: heads, framing, time, pipelines, slow readers."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator

import httpx
import pytest

from llmserve.engine.fake import Reply, Script
from tests.conformance.validator import assert_openai
from tests.http.harness import App, poll, running
from tests.http.raw import Raw, connected, post, seconds_until_closed

LIVE = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n"
BODY = b'{"prompt": "x"}'

SERVER = {"header_timeout_s": 0.5, "max_header_bytes": 4096, "body_timeout_s": 2}


@pytest.fixture(scope="module")
def app() -> Iterator[App]:
    script = Script(stall_on="STALL", stall_after_tokens=2)
    with running(script, server=SERVER) as app:
        yield app


def assert_refused(raw: Raw, status: int, words: str = "", kind: str = "error") -> None:
    """An answer in the envelope, the last one of its connection."""
    got, headers, body = raw.reply()
    assert got == status, body
    assert headers["connection"] == "close"
    assert headers["content-type"] == "application/json"
    assert_openai(kind, json.loads(body))
    assert words in json.loads(body)["error"]["message"]
    assert raw.rest() == b""


# --- size


@pytest.mark.parametrize(
    "head",
    [
        b"GET /livez HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * 5000 + b"\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\n" + b"X-A: a\r\n" * 700 + b"\r\n",
        b"GET /livez?" + b"a" * 5000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * 2_000_000,
        b"GET /" + b"a" * 2_000_000,
        CHUNKED + b"\r\n0\r\nX-A: " + b"a" * 2_000_000,
        CHUNKED + b"\r\n1;" + b"a" * 2_000_000,
    ],
    ids=["value", "count", "target", "endless value", "endless target", "trailer", "extension"],
)
def test_a_large_head_is_431(app: App, head: bytes) -> None:
    with connected(app.port) as raw:
        raw.try_send(head)
        assert_refused(raw, 431, "limit of 4096 bytes")


def test_a_head_within_the_limit_passes(app: App) -> None:
    with connected(app.port) as raw:
        raw.send(b"GET /livez HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * 3900 + b"\r\n\r\n")
        assert raw.reply()[0] == 200


def test_refusals_speak_the_protocol_of_the_route(app: App) -> None:
    with connected(app.port) as raw:
        raw.send(b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * 5000 + b"\r\n\r\n")
        assert_refused(raw, 431, kind="anthropic_error")


# --- time


def test_a_head_that_trickles_is_408(app: App) -> None:
    with connected(app.port) as raw:
        begin = time.monotonic()
        for byte in b"GET /livez HTTP/1.1\r\nX-A: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa":
            if not raw.try_send(bytes([byte])) or _readable(raw.socket, 0.05):
                break
        assert time.monotonic() - begin < 3
        assert_refused(raw, 408, "within 0.5 s")


def _readable(connection: socket.socket, seconds: float) -> bool:
    import select

    return bool(select.select([connection], [], [], seconds)[0])


def test_a_silent_connection_is_closed_without_a_word(app: App) -> None:
    with connected(app.port) as raw:
        begin = time.monotonic()
        assert raw.rest() == b""
        assert 0.3 < time.monotonic() - begin < 3


def test_the_second_request_has_its_own_time(app: App) -> None:
    with connected(app.port) as raw:
        raw.send(LIVE)
        assert raw.reply()[0] == 200
        assert not _readable(raw.socket, 1.0), "an idle connection is no late head"
        raw.send(LIVE)
        assert raw.reply()[0] == 200
        raw.send(LIVE[:10])
        assert_refused(raw, 408)


def test_empty_lines_keep_no_connection_open(app: App) -> None:
    with connected(app.port) as raw:
        raw.send(LIVE)
        assert raw.reply()[0] == 200
        begin = time.monotonic()
        while raw.try_send(b"\r\n") and not _readable(raw.socket, 0.1):
            assert time.monotonic() - begin < 4
        assert b"HTTP/1.1 408" in raw.rest()


def test_a_body_after_its_answer_keeps_no_connection_open(app: App) -> None:
    with connected(app.port) as raw:
        raw.send(CHUNKED.replace(b"/generate", b"/nothing") + b"\r\n")
        assert raw.reply()[0] == 404
        begin = time.monotonic()
        while raw.try_send(b"1\r\na\r\n") and not _readable(raw.socket, 0.1):
            assert time.monotonic() - begin < 6


def test_a_body_that_ends_soon_after_its_answer_keeps_the_connection(app: App) -> None:
    with connected(app.port) as raw:
        raw.send(CHUNKED.replace(b"/generate", b"/nothing") + b"\r\n")
        assert raw.reply()[0] == 404
        raw.send(b"1\r\na\r\n0\r\n\r\n" + LIVE)
        assert raw.reply()[0] == 200


# --- what two servers could read differently


@pytest.mark.parametrize(
    "request_",
    [
        POST + b"Content-Length: 15\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\nContent-Length: 15\r\n\r\n0\r\n\r\n",
        POST + b"Content-Length: 15\r\nContent-Length: 16\r\n\r\n" + BODY,
        POST + b"Content-Length: 15\r\nContent-Length: 15\r\n\r\n" + BODY,
        POST + b"Content-Length: 15, 15\r\n\r\n" + BODY,
        POST + b"Content-Length: +15\r\n\r\n" + BODY,
        POST + b"Content-Length: 99999999999999999999999\r\n\r\n" + BODY,
        POST + b"Transfer-Encoding: xchunked\r\n\r\n" + BODY,
        POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: identity\r\n\r\n" + BODY,
        POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        CHUNKED + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        CHUNKED.replace(b"1.1", b"1.0") + b"\r\n0\r\n\r\n",
        CHUNKED + b"\r\nzz\r\nabc\r\n0\r\n\r\n",
        POST + b"Content-Type: text/plain\r\nContent-Length: 15\r\n\r\n" + BODY,
        LIVE[:-2] + b"Host: y\r\n\r\n",
        LIVE[:-2] + b"Authorization: Bearer a\r\nAuthorization: Bearer b\r\n\r\n",
        b"GET /livez HTTP/1.1\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: \r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: a/b\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: a@b\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: a b\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nA: b\x00c\r\n\r\n",
        b"GET /livez HTTP/1.1\nHost: x\n\n",
        b"GET /livez\r\n\r\n",
        b"GET /livez HTTP/2.0\r\nHost: x\r\n\r\n",
        b"GET /livez HTTP/1.9\r\nHost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET livez HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"NONSENSE /livez HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
    ],
    ids=lambda request_: repr(request_[-60:]),
)
def test_ambiguous_and_invalid_requests_are_400(app: App, request_: bytes) -> None:
    with connected(app.port) as raw:
        raw.send(request_)
        assert_refused(raw, 400)
    assert app.get("/readyz").status_code == 200


def test_http_1_0_needs_no_host(app: App) -> None:
    with connected(app.port) as raw:
        raw.send(b"GET /livez HTTP/1.0\r\n\r\n")
        assert b'{"status":"live"}' in raw.rest()


def test_trailers_are_no_headers(app: App) -> None:
    with connected(app.port) as raw:
        body = b"f\r\n" + BODY + b"\r\n0\r\nX-Request-Timeout: nonsense\r\n\r\n"
        raw.send(CHUNKED + b"\r\n" + body)
        assert raw.reply()[0] == 200


# --- pipelines


def test_pipelined_requests_are_answered_in_order(app: App) -> None:
    upgrade = LIVE[:-2] + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    unknown = LIVE.replace(b"livez", b"nothing")
    with connected(app.port) as raw:
        raw.send(LIVE + post("/generate", {"prompt": "x"}) + upgrade + unknown + LIVE)
        assert [raw.reply()[0] for _ in range(5)] == [200, 200, 200, 404, 200]


def test_a_long_pipeline_is_answered_in_part_and_ends(app: App) -> None:
    with connected(app.port) as raw:
        raw.send(LIVE * 2000)
        assert 8 < raw.rest().count(b"HTTP/1.1 200") < 200


def test_garbage_after_a_request_never_cuts_into_its_answer(app: App) -> None:
    with connected(app.port) as raw:
        raw.send(post("/generate/stream", {"prompt": "x"}) + b"GARBAGE\r\n\r\n")
        status, _, body = raw.reply()
        assert status == 200
        assert b"event: done" in body
        assert raw.rest() == b""


def test_a_client_that_goes_away_takes_its_pipeline_along(app: App) -> None:
    with connected(app.port) as raw:
        stalled = post("/generate/stream", {"prompt": "STALL"})
        raw.send(stalled + post("/generate", {"prompt": "STALL"}))
        poll(lambda: app.get("/healthz").json()["requests_in_flight"] == 1)
    poll(lambda: app.get("/healthz").json()["requests_in_flight"] == 0)
    poll(lambda: app.get("/healthz").json()["engine"]["running"] == 0)


# --- readers


def test_a_reader_that_stalls_is_cut_off_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    script = Script(replies=(Reply("", "word " * 200_000),), max_model_len=1_000_000)
    with (
        running(script, server={"slow_reader_timeout_s": 0.3}) as app,
        connected(app.port, receive_buffer=4096) as raw,
    ):
        raw.send(post("/generate/stream", {"prompt": "x"}))
        poll(lambda: app.outcomes() == {"disconnected": 1})
        assert b"event: done" not in raw.rest()
    assert [r.message for r in caplog.records if r.levelname == "ERROR"] == []
    assert caplog.text.count("the client stopped reading") == 1


def test_a_client_that_never_reads_its_answers_is_cut_off() -> None:
    with running(server={"slow_reader_timeout_s": 0.3}) as app:
        get = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"
        with connected(app.port, receive_buffer=4096) as raw:
            begin = time.monotonic()
            while raw.try_send(get * 5):
                assert time.monotonic() - begin < 9


# --- number


def test_too_many_connections_are_503_and_probes_still_answer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with running(server={"max_connections": 3}) as app:
        app.close()
        held = [socket.create_connection(("127.0.0.1", app.port)) for _ in range(3)]
        with connected(app.port) as raw:
            raw.send(post("/v1/messages", {}))
            status, headers, body = raw.reply()
            assert status == 503
            assert headers["retry-after"]
            assert_openai("anthropic_error", json.loads(body))
        for path in ("/livez", "/readyz"):
            assert httpx.get(app.url + path).status_code == 200
        with connected(app.port) as raw:
            assert seconds_until_closed(raw) < 3, "no room to wait for the silent"
        for connection in held:
            connection.close()
        poll(lambda: httpx.post(f"{app.url}/generate", json={"prompt": "x"}).status_code == 200)
    assert caplog.text.count("too many connections") == 1
