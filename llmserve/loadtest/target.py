"""One server: its address, and requests as bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import msgspec

from llmserve import __version__
from llmserve.errors import ConfigError
from llmserve.loadtest.connection import Pool
from llmserve.loadtest.plan import Address, Endpoint

_PATHS: dict[Endpoint, str] = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
}
_PORTS = {"http": 80, "https": 443}


class Target:
    """One server. Raises ``ConfigError`` for an address that is none."""

    def __init__(self, address: Address, endpoint: Endpoint, body: Mapping[str, Any]) -> None:
        parts = urlsplit(address.url)
        try:
            port = parts.port
        except ValueError:
            port = 0
        if parts.scheme not in _PORTS or not parts.hostname or port == 0 or parts.username:
            raise ConfigError(
                f"The address {_without_user(address.url)!r} is not allowed; it must look like "
                "http://HOST:PORT, without a user name."
            )
        if parts.query or parts.fragment or not address.url.isascii() or " " in address.url:
            raise ConfigError(
                f"The address {address.url!r} is not allowed: it has parts that a base URL has not."
            )
        key = address.api_key
        if key and not (key.isascii() and key.isprintable()):
            raise ConfigError("An API key consists of printable ASCII characters.")
        # The OpenAI SDK's base URL ends with /v1; whoever pastes it means the same server.
        self._path = parts.path.rstrip("/").removesuffix("/v1")
        self.url = f"{parts.scheme}://{parts.netloc}{self._path}"
        self.host = parts.hostname
        self.model = address.model
        self._endpoint = endpoint
        self._body = dict(body)
        self._headers = f"Host: {parts.netloc}\r\nUser-Agent: llmserve-bench/{__version__}\r\n" + (
            f"Authorization: Bearer {key}\r\n" if key else ""
        )
        self.pool = Pool(parts.hostname, port or _PORTS[parts.scheme], tls=parts.scheme == "https")

    def models_request(self) -> bytes:
        """Asks for the list of models."""
        return f"GET {self._path}/v1/models HTTP/1.1\r\n{self._headers}\r\n".encode()

    def request(self, text: str, max_tokens: int) -> bytes:
        """Asks for a streamed answer of at most ``max_tokens``, with token counts."""
        prompt: dict[str, Any] = (
            {"messages": [{"role": "user", "content": text}]}
            if self._endpoint == "chat"
            else {"prompt": text}
        )
        body = msgspec.json.encode(
            {
                "model": self.model,
                **prompt,
                "max_tokens": max_tokens,
                "stream": True,
                "stream_options": {"include_usage": True},
                **self._body,
            }
        )
        head = (
            f"POST {self._path}{_PATHS[self._endpoint]} HTTP/1.1\r\n{self._headers}"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


def _without_user(url: str) -> str:
    """The URL as it may be shown: user name and password are no one's business."""
    head, separator, tail = url.rpartition("@")
    return f"…@{tail}" if separator and head else url
