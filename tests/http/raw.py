"""HTTP by hand: what no client library would send."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

Reply = tuple[int, dict[str, str], bytes]


class Raw:
    """One connection. Everything that is read is bounded by ten seconds."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self._left = b""

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def try_send(self, data: bytes) -> bool:
        """False when the server takes no more."""
        try:
            self.socket.sendall(data)
        except OSError:
            return False
        return True

    def reply(self) -> Reply:
        """The next response: status, headers in lower case, body."""
        head, _, self._left = self._until(b"\r\n\r\n").partition(b"\r\n\r\n")
        status, *lines = head.decode("latin-1").split("\r\n")
        headers = {n.lower(): v for n, _, v in (line.partition(": ") for line in lines)}
        if headers.get("transfer-encoding") == "chunked":
            body, _, self._left = self._until(b"0\r\n\r\n").partition(b"0\r\n\r\n")
        else:
            length = int(headers["content-length"])
            while len(self._left) < length:
                self._left += self._more()
            body, self._left = self._left[:length], self._left[length:]
        return int(status.split(" ")[1]), headers, body

    def rest(self) -> bytes:
        """Everything until the server closes; a reset counts as such."""
        data = self._left
        try:
            while part := self.socket.recv(65_536):
                data += part
        except ConnectionError:
            pass
        return data

    def _until(self, end: bytes) -> bytes:
        while end not in self._left:
            self._left += self._more()
        return self._left

    def _more(self) -> bytes:
        part = self.socket.recv(65_536)
        if not part:
            raise ConnectionError(f"closed after {self._left[:200]!r}")
        return part


@contextmanager
def connected(port: int, receive_buffer: int = 0) -> Iterator[Raw]:
    """A connection to this machine's ``port``."""
    connection = socket.socket()
    with connection:
        if receive_buffer:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.settimeout(10)
        connection.connect(("127.0.0.1", port))
        yield Raw(connection)


def post(path: str, body: dict[str, Any], *headers: str) -> bytes:
    """A whole POST request."""
    content = json.dumps(body).encode()
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: x",
        "Content-Type: application/json",
        f"Content-Length: {len(content)}",
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


def seconds_until_closed(raw: Raw) -> float:
    """How long the server keeps the connection open; what it says meanwhile is dropped."""
    begin = time.monotonic()
    raw.rest()
    return time.monotonic() - begin
