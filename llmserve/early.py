"""Answers on the listening socket while the server itself is still being imported.

For less than a second: live is live, everything else is 503 with ``Retry-After``. One
connection at a time, from a thread; what is still in the backlog at the end is the
server's.
"""

from __future__ import annotations

import json
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_LIVE = {"/livez", "/health"}
_READY = {"/readyz", "/ready"}
_HEAD_BYTES = 16_384
_CLIENT_SECONDS = 0.5
_STARTING = "The server is starting."


@contextmanager
def answering(listener: socket.socket) -> Iterator[None]:
    """Answer on ``listener`` (listening, not blocking) for the time of this block."""
    woken, waker = socket.socketpair()
    thread = threading.Thread(target=_serve, args=(listener, woken), daemon=True)
    thread.start()
    try:
        yield
    finally:
        waker.send(b"x")
        thread.join()
        woken.close()
        waker.close()


def _serve(listener: socket.socket, woken: socket.socket) -> None:
    began = time.monotonic()
    while True:
        readable, _, _ = select.select([listener, woken], [], [])
        if woken in readable:
            return
        with suppress(OSError):
            connection, _ = listener.accept()
            with connection:
                until = time.monotonic() + _CLIENT_SECONDS
                method, path = _request_line(connection, until)
                reply = _reply(path, time.monotonic() - began)
                head_only = reply[: reply.index(b"\r\n\r\n") + 4]
                connection.sendall(head_only if method == "HEAD" else reply)
                _drain(connection, until)


def _request_line(connection: socket.socket, until: float) -> tuple[str, str]:
    """Method and path; empty when there is no whole request line."""
    head = b""
    while b"\r\n" not in head and len(head) < _HEAD_BYTES:
        part = _receive(connection, until)
        if not part:
            break
        head += part
    words = head.partition(b"\r\n")[0].decode("latin-1").split(" ")
    return (words[0], words[1].partition("?")[0]) if len(words) == 3 else ("", "")


def _reply(path: str, seconds: float) -> bytes:
    if path in _LIVE:
        return _response("200 OK", {"status": "live"})
    if path in _READY:
        return _response(
            "503 Service Unavailable",
            {
                "status": "not ready",
                "stage": "starting",
                "seconds_in_stage": round(seconds, 1),
                "start_seconds": {"starting": round(seconds, 2)},
                "progress": 0.0,
                "reason": _STARTING,
            },
        )
    error: dict[str, object] = {
        "message": _STARTING,
        "type": "service_unavailable_error",
        "param": None,
        "code": "model_not_ready",
    }
    body: dict[str, object] = {"error": error}
    if path.startswith("/v1/messages"):
        error = {"type": "overloaded_error", "message": _STARTING}
        body = {"type": "error", "error": error}
    return _response("503 Service Unavailable", body)


def _response(status: str, body: dict[str, object]) -> bytes:
    content = json.dumps(body).encode()
    retry = "" if status.startswith("200") else "Retry-After: 1\r\n"
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n{retry}Connection: close\r\n\r\n"
    )
    return head.encode() + content


def _drain(connection: socket.socket, until: float) -> None:
    """Read what the client still sends: closing with unread data would reset the
    connection, and the client might lose the reply."""
    connection.shutdown(socket.SHUT_WR)
    received = 0
    while received < _HEAD_BYTES and (part := _receive(connection, until)):
        received += len(part)


def _receive(connection: socket.socket, until: float) -> bytes:
    """The deadline is the connection's, not each read's: a client that trickles must not
    hold up the start."""
    connection.settimeout(max(0.001, until - time.monotonic()))
    return connection.recv(4096)
