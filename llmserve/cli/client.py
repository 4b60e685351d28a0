"""A small client for a running server: what ``chat`` and ``generate`` need of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx

from llmserve.cli.failure import CommandFailed
from llmserve.cli.sse import SseEvent, read_events
from llmserve.cli.terminal import printable
from llmserve.errors import ConfigError

_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
_CONNECT_SECONDS = 10
_SILENCE_SECONDS = 300


class Client:
    """One server. Every failure is a ``CommandFailed`` with a sentence to show."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        host = urlsplit(url).hostname if url.startswith(("http://", "https://")) else None
        if not host:
            raise ConfigError(f"--url: {url!r} is not allowed; it must look like http://HOST:PORT.")
        if api_key and not (api_key.isascii() and api_key.isprintable()):
            raise ConfigError("--api-key: a key consists of printable ASCII characters.")
        # The OpenAI SDK's base URL ends with /v1; whoever pastes it means the same server.
        self.url = url.rstrip("/").removesuffix("/v1")
        headers = {"Content-Type": "application/json"}
        if api_key:
            headers["Authorization"] = f"Bearer {api_key}"
        try:
            self._http = httpx.Client(
                base_url=self.url,
                headers=headers,
                timeout=httpx.Timeout(_SILENCE_SECONDS, connect=_CONNECT_SECONDS),
                # A proxy for the outside world cannot reach this machine's own loopback.
                trust_env=host not in _LOOPBACK,
            )
        except httpx.InvalidURL as error:
            raise ConfigError(f"--url: {url!r} is not allowed: {error}.") from None

    def close(self) -> None:
        """Drop all connections."""
        self._http.close()

    def first_model(self) -> str:
        """The name of the first model that is served."""
        with self._explained():
            reply = self._checked(self._http.get("/v1/models"))
        match reply:
            case {"data": [{"id": str(name)}, *_]}:
                return name
        raise CommandFailed(f"{self.url} does not say which models it serves; give --model.")

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """Send JSON and return the JSON that comes back."""
        with self._explained():
            return self._checked(self._http.post(path, content=_encode(body)))

    @contextmanager
    def stream(self, path: str, body: Mapping[str, Any]) -> Iterator[Iterator[SseEvent]]:
        """Send JSON and read events. Leaving the context closes the stream, which is how
        the server learns that the rest is not wanted."""
        request = self._http.stream("POST", path, content=_encode(body))
        with self._explained(), request as response:
            if response.is_error:
                response.read()
                self._checked(response)
            kind = response.headers.get("content-type", "")
            if not kind.startswith("text/event-stream"):
                raise CommandFailed(f"{self.url} sent {kind or 'nothing'}, not a stream of events.")
            yield read_events(response.iter_bytes())

    def _checked(self, response: httpx.Response) -> Any:
        try:
            reply = response.json()
        except ValueError:
            reply = None
        if response.is_success and reply is not None:
            return reply
        said = error_message(reply)
        raise CommandFailed(
            said or f"{self.url} answered {response.status_code} {response.reason_phrase}."
        )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout):
            raise CommandFailed(
                f"No server answers at {self.url}. Start one with: llmserve serve"
            ) from None
        except httpx.TimeoutException:
            raise CommandFailed(f"{self.url} was silent for {_SILENCE_SECONDS} seconds.") from None
        except httpx.RequestError:
            raise CommandFailed(
                "The answer is incomplete: the server closed the connection."
            ) from None


def _encode(body: Mapping[str, Any]) -> bytes:
    # All ASCII, so that arguments that are not UTF-8 reach the server, which names the
    # field, instead of failing here.
    return json.dumps(body).encode()


def parse_event(event: SseEvent) -> dict[str, Any]:
    """The JSON object of an event. An error event is raised."""
    try:
        data = json.loads(event.data)
    except ValueError:
        data = None
    if not isinstance(data, dict):
        raise CommandFailed("The answer is incomplete: the server sent an event without JSON.")
    if event.name == "error" or data.get("error"):
        raise CommandFailed(f"The answer is incomplete: {error_message(data) or 'no reason given'}")
    return data


def error_message(reply: Any) -> str | None:
    """What an error envelope says: OpenAI's, TGI's, or FastAPI's."""
    match reply:
        case {"error": {"message": str(text)}} | {"error": str(text)} | {"detail": str(text)}:
            return printable(text)
    return None
