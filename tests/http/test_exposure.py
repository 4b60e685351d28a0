"""What is not there cannot be abused: no development endpoints, no fetching of media, no
client's text in a log, nothing for a browser to be tricked with."""

from __future__ import annotations

import base64
import http.server
import logging
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from llmserve.early import answering
from llmserve.errors import ConfigError
from llmserve.process import check_exposure
from llmserve.settings import Settings
from tests.conformance.validator import assert_openai
from tests.http.harness import App, running
from tests.http.raw import connected

# What vLLM 0.32 mounts besides inference, in one of its modes or in all of them.
DANGEROUS = [
    *("/pause", "/resume", "/is_paused", "/abort_requests", "/update_weights"),
    *("/init_weight_transfer_engine", "/get_world_size", "/collective_rpc", "/scale_elastic_ep"),
    *("/is_scaling_elastic_ep", "/sleep", "/wake_up", "/is_sleeping", "/start_profile"),
    *("/stop_profile", "/reset_prefix_cache", "/reset_mm_cache", "/reset_encoder_cache"),
    *("/server_info", "/server_load", "/load", "/invocations", "/ping", "/version"),
    *("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/inference/v1/generate"),
    *("/tokenizer_info", "/v1/chat/completions/render", "/v1/completions/render", "/pooling"),
    *("/classify", "/score", "/rerank", "/v1/rerank", "/v1/audio/transcriptions"),
    *("/v1/audio/translations", "/v1/realtime", "/redoc", "/debug", "/.env", "/admin"),
]
PROBES = ("/livez", "/health", "/readyz", "/ready", "/healthz")
INTERNAL = "http://169.254.169.254/latest/meta-data/"


@pytest.fixture(scope="module")
def app() -> Iterator[App]:
    with running() as app:
        yield app


@pytest.fixture(scope="module")
def guarded() -> Iterator[App]:
    with running(auth={"api_keys": ["k"]}) as app:
        yield app


@pytest.mark.parametrize("path", DANGEROUS)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_development_endpoints_are_not_there(
    app: App, guarded: App, method: str, path: str
) -> None:
    reply = app.request(method, path)
    assert reply.status_code == 404
    assert_openai("error", reply.json())
    assert guarded.request(method, path).status_code == 401
    headers = {"authorization": "Bearer k"}
    assert guarded.request(method, path, headers=headers).status_code == 404


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", "127.0.0.1.nip.io"])  # noqa: S104
def test_a_network_address_needs_a_key(host: str) -> None:
    settings = Settings.model_validate({"server": {"host": host}})
    with pytest.raises(ConfigError, match=f"server.host is {host} and there is no API key"):
        check_exposure(settings, keys=False)
    check_exposure(settings, keys=True)
    opened = {"server": {"host": host}, "auth": {"allow_anonymous_network": True}}
    check_exposure(Settings.model_validate(opened), keys=False)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_the_loopback_address_does_not(host: str) -> None:
    check_exposure(Settings.model_validate({"server": {"host": host}}), keys=False)


# --- media


@pytest.fixture(scope="module")
def trap() -> Iterator[tuple[str, list[str]]]:
    """A web server on this machine, and the paths it was asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
        server.shutdown()
        thread.join()


def media_bodies(url: str) -> list[tuple[str, dict[str, Any]]]:
    def chat(part: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        return "/v1/chat/completions", {"messages": [{"role": "user", "content": [part]}]}

    def message(source: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        content = [{"type": "image", "source": source}]
        return "/v1/messages", {"max_tokens": 2, "messages": [{"role": "user", "content": content}]}

    def response(part: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        return "/v1/responses", {"input": [{"role": "user", "content": [part]}]}

    return [
        chat({"type": "image_url", "image_url": {"url": url}}),
        chat({"type": "video_url", "video_url": {"url": url}}),
        chat({"type": "audio_url", "audio_url": {"url": url}}),
        chat({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}),
        chat({"type": "file", "file": {"file_data": url}}),
        message({"type": "url", "url": url}),
        message({"type": "base64", "media_type": "image/png", "data": "AAAA"}),
        response({"type": "input_image", "image_url": url}),
        response({"type": "input_file", "file_url": url}),
    ]


@pytest.mark.parametrize("number", range(9))
def test_media_is_refused_and_nothing_is_fetched(
    app: App, trap: tuple[str, list[str]], number: int
) -> None:
    url, asked = trap
    data = "data:image/png;base64," + base64.b64encode(bytes(20)).decode()
    for place in (f"{url}/x.png", INTERNAL, "file:///etc/passwd", data):
        path, body = media_bodies(place)[number]
        reply = app.post(path, json=body)
        assert reply.status_code == 400, reply.text
        assert_openai("anthropic_error" if path == "/v1/messages" else "error", reply.json())
    assert asked == []


# --- logs


def test_a_client_cannot_write_lines_into_the_log(
    guarded: App, caplog: pytest.LogCaptureFixture
) -> None:
    forged = "x\n12:00:00 ERROR   llmserve: forged \x1b[31m"
    with caplog.at_level(logging.DEBUG, "llmserve"):
        for headers in ({"authorization": "Bearer k"}, {"authorization": "Bearer wrong"}):
            given = headers | {"x-request-id": "a b;forged", "user-agent": "forged"}
            guarded.get(f"/v1/models/{forged.encode().hex()}%0aforged", headers=given)
            body = {"prompt": forged, "model": forged, forged: 1}
            guarded.post("/generate?forged=%0a1", json=body, headers=given)
            guarded.post("/generate", json={"prompt": forged}, headers=given)
            guarded.delete("/v1/requests/%0aforged", headers=given)
    ours = [r for r in caplog.records if r.name.startswith("llmserve")]
    assert ours, "the requests themselves are logged"
    for record in ours:
        assert "forged" not in record.getMessage()
        assert "\n" not in record.getMessage()


# --- probes and browsers


@pytest.mark.parametrize("path", PROBES)
def test_probes_answer_head_without_a_body(guarded: App, path: str) -> None:
    got, head = guarded.get(path), guarded.head(path)
    assert head.status_code == got.status_code == 200
    assert head.content == b""
    assert head.headers["content-type"] == got.headers["content-type"]


def test_head_has_no_body_while_the_server_is_imported() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        with answering(listener), connected(listener.getsockname()[1]) as raw:
            raw.send(b"HEAD /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = raw.rest()
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(b"\r\n\r\n")


def test_no_reply_is_sniffed(app: App) -> None:
    for reply in (app.get("/livez"), app.get("/nothing"), app.post("/generate", json={})):
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in reply.headers


def test_unknown_query_parameters_mean_nothing(app: App) -> None:
    # Some SDKs add their own (?beta=true, ?api-version=…).
    reply = app.post("/generate?beta=true&model=other&max_tokens=x", json={"prompt": "x"})
    assert reply.status_code == 200


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({}, "Content-Type is missing"),
        ({"content-type": "text/plain"}, "not 'text/plain'"),
        ({"content-type": "application/json", "content-encoding": "gzip"}, "'gzip'"),
    ],
)
def test_bodies_that_are_no_json_are_415(app: App, headers: dict[str, str], words: str) -> None:
    reply = app.post("/generate", content=b"{}", headers=headers)
    assert reply.status_code == 415
    assert words in reply.json()["error"]["message"]


def test_a_slip_in_a_native_field_is_understood(app: App) -> None:
    reply = app.post("/generate", json={"prompt": "x", "max_token": 5})
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert (error["param"], error["code"]) == ("max_token", "unknown_parameter")
    assert "Did you mean max_tokens" in error["message"]


@pytest.mark.parametrize("path", ["/generate", "/generate/stream"])
@pytest.mark.parametrize("stop", ["", [""], ["x", ""]])
def test_a_stop_string_that_is_empty_is_refused(app: App, path: str, stop: Any) -> None:
    reply = app.post(path, json={"prompt": "x", "stop": stop})
    assert reply.status_code == 400
    assert reply.json()["error"]["param"].startswith("stop")
