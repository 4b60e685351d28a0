"""What a client hears while the server is still being imported."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import httpx
import pytest

from llmserve.early import answering
from tests.conformance.validator import assert_openai


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        yield listener


def url(listener: socket.socket, path: str) -> str:
    return f"http://127.0.0.1:{listener.getsockname()[1]}{path}"


def test_live_and_not_ready(listener: socket.socket) -> None:
    with answering(listener):
        assert httpx.get(url(listener, "/livez")).json() == {"status": "live"}
        ready = httpx.get(url(listener, "/readyz?verbose"))
        assert ready.status_code == 503
        assert ready.json()["stage"] == "starting"
        assert ready.headers["retry-after"] == "1"


def test_requests_are_refused_in_their_own_envelope(listener: socket.socket) -> None:
    with answering(listener):
        body = {"messages": ["x" * 10_000]}
        reply = httpx.post(url(listener, "/v1/chat/completions"), json=body)
        assert reply.status_code == 503
        assert_openai("error", reply.json())
        reply = httpx.post(url(listener, "/v1/messages"), json=body)
        assert_openai("anthropic_error", reply.json())


def test_a_silent_client_does_not_block_the_next_one(listener: socket.socket) -> None:
    with answering(listener), socket.create_connection(listener.getsockname()):
        assert httpx.get(url(listener, "/livez")).status_code == 200


def test_the_backlog_is_left_to_the_server(listener: socket.socket) -> None:
    with answering(listener):
        pass
    replies: list[int] = []

    def ask() -> None:
        replies.append(httpx.get(url(listener, "/livez")).status_code)

    thread = threading.Thread(target=ask)
    thread.start()
    listener.setblocking(True)
    connection, _ = listener.accept()
    with connection:
        connection.recv(4096)
        connection.sendall(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
    thread.join(5)
    assert replies == [204]
