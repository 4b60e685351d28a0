"""One client's connection: uvicorn's httptools protocol, with bounds on everything that
comes before the application.

* the request line and the headers: their bytes, the time they may take, and what is
  ambiguous in them (request smuggling lives on what two servers read differently);
* the number of open connections; the probes are answered a little beyond it;
* the requests that wait on one connection (pipelining);
* the rest of a body whose request has been answered already, and a client that takes
  nothing of its answer.

What is refused here is refused in the envelope of its route, like everywhere else.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sized
from typing import Any, ClassVar, cast

import httptools
from starlette.types import Scope
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from llmserve.errors import (
    Draining,
    HeadersTooLarge,
    InvalidRequest,
    LlmserveError,
    Overloaded,
    RequestTimeout,
)
from llmserve.http.heads import check_head, head_size, path_of, reason, refusal
from llmserve.http.health import PROBES
from llmserve.http.joined import Joined
from llmserve.http.lazy import LazyEvent, Pipeline
from llmserve.http.lent import Lent, lend, lent_to
from llmserve.settings import ServerSettings

log = logging.getLogger(__name__)

_LINGER_SECONDS = 2.0
"""How long data after a refusal or an early answer is read and thrown away: closing with
unread data resets the connection, and the client may lose the answer."""

_SURPLUS = 64
"""Connections beyond the limit that are told so (or probes that are answered); further
ones are dropped without a word."""

_SURPLUS_SECONDS = 1.0
_LEAST_BYTES = 16 * 2**10
"""What a client has to take in ``slow_reader_timeout_s`` while there is as much."""

_LOG_SECONDS = 10.0

_FEW_PIPELINED = 8
"""Requests waiting behind the one in progress, beyond which nothing more is read."""

_MOST_PIPELINED = 64
"""The same, beyond which the connection ends after the answers to these."""


Address = tuple[str, int | None] | None


class Door:
    """What the connections of one server share: the limits, and how many were turned away."""

    def __init__(self, settings: ServerSettings, max_connections: int) -> None:
        self.settings = settings
        self.max_connections = max_connections
        self.addresses: dict[Address, Address] = {}
        """Our own addresses, which are few: connections share them."""
        self._turned_away = 0
        self._told_at = -_LOG_SECONDS

    def turn_away(self) -> None:
        """Count it, and log that now and then: a flood must not fill the log as well."""
        self._turned_away += 1
        now = time.monotonic()
        if now - self._told_at >= _LOG_SECONDS:
            log.warning(
                "too many connections (server.max_connections: %d): %d turned away",
                self.max_connections,
                self._turned_away,
            )
            self._told_at, self._turned_away = now, 0


def protocol_class(settings: ServerSettings, max_connections: int) -> type[Connection]:
    """The class of a server's connections, for ``uvicorn.Config(http=…)``."""
    return type("ServerConnection", (Connection,), {"door": Door(settings, max_connections)})


class _Flow(FlowControl):
    """Reads on only while few requests wait behind the one in progress. uvicorn reads on
    after every answer, and its pipeline grows for as long as a client likes."""

    def __init__(self, transport: asyncio.Transport, pipeline: Sized) -> None:
        # All that uvicorn's constructor does, with another event.
        self._transport = transport
        self.read_paused = False
        self.write_paused = False
        self._is_writable_event = cast(asyncio.Event, LazyEvent())
        self._is_writable_event.set()
        self._pipeline = pipeline

    def resume_reading(self) -> None:
        if len(self._pipeline) < _FEW_PIPELINED:
            super().resume_reading()


class Connection(HttpToolsProtocol):
    """See the module. Use ``protocol_class`` to make one with its ``door``."""

    # Beside uvicorn's own, which are as many as Python keeps in the compact way.
    __slots__ = (
        *("_flush_timer", "_in_head", "_refused", "_serving", "_surplus", "_timer", "_unread"),
    )
    door: ClassVar[Door]

    # --- the life of the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn
        super().connection_made(transport)
        self.server = self.door.addresses.setdefault(self.server, self.server)
        self.pipeline = cast(deque[Any], Pipeline())
        self.flow = _Flow(transport, self.pipeline)
        self._in_head = True
        self._unread = 0
        """Bytes since the last progress: a head, some body, the end of a request."""
        self._refused = False
        self._serving: RequestResponseCycle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._flush_timer: asyncio.TimerHandle | None = None
        surplus = len(self.connections) - self.door.max_connections
        self._surplus = surplus > 0
        if self._surplus:
            self.door.turn_away()
        if surplus > _SURPLUS:
            transport.abort()
            return
        seconds = self.door.settings.header_timeout_s
        if self._surplus:
            seconds = min(seconds or _SURPLUS_SECONDS, _SURPLUS_SECONDS)
        self._arm(seconds, self._head_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        if self._flush_timer is not None:
            self._flush_timer.cancel()
        self._unset_keepalive_if_required()
        self._leave()
        super().connection_lost(exc)

    def hang_up(self) -> None:
        """Cut the connection, unsent data included."""
        self._leave()
        self.transport.abort()

    def shutdown(self) -> None:
        """The server ends, and requests under way have had their time. One whose body has
        not arrived by now is told so (``Lent.leave``)."""
        if self._in_head and self._unread and not self._busy:
            self._refuse(Draining("The server is shutting down and takes no new requests."))
            return
        super().shutdown()
        if self._serving is not None and not self._serving.response_started:
            _lent(self._serving).leave()

    # --- what comes in

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._unset_keepalive_if_required()
        self._unread += len(data)
        try:
            while data:
                try:
                    self.parser.feed_data(data)
                    break
                except httptools.HttpParserUpgrade as upgrade:
                    # Declined, by answering as usual; what follows is HTTP still.
                    data = data[upgrade.args[0] :]
        except httptools.HttpParserError as error:
            self._refuse(reason(error))
            return
        if self._unread > self.door.settings.max_header_bytes:
            self._refuse(self._too_large())
        elif self._in_head and self._unread and self._timer is None:
            self._arm(self.door.settings.header_timeout_s, self._head_late)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._unread = self._unread or 1

    def on_headers_complete(self) -> None:
        self._check_head()
        super().on_headers_complete()
        # Trailers come later and are dropped: the request has been judged by its headers.
        self.headers = []
        self._in_head = False
        self._unread = 0
        self._disarm()
        self.cycle.transport = cast(asyncio.Transport, Joined(self.transport))
        self.cycle.message_event = cast(asyncio.Event, LazyEvent())
        lend(cast(Scope, self.scope), Lent(self.cycle, self.hang_up))
        if not self.pipeline:
            self._serving = self.cycle
        if self._surplus:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._unread = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._in_head = True
        self._unread = 0
        self._disarm()
        if self.cycle.response_complete and not self.transport.is_closing():
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _check_head(self) -> None:
        """Raises ``LlmserveError`` for what the parser lets through and nobody should."""
        if len(self.pipeline) >= _MOST_PIPELINED:
            raise InvalidRequest("Too many requests at once on one connection.")
        check_head(self.parser.get_http_version(), self.url, self.headers)
        most = self.door.settings.max_header_bytes
        # Where more than a head came along (a body, the request before), it is measured.
        alone = 1 < self._unread <= most
        if not alone and head_size(self.url, self.headers) > most:
            raise self._too_large()
        if self._surplus and self._path() not in PROBES:
            raise Overloaded("The server has too many open connections.", retry_after=2.0)

    # --- what goes out

    def on_response_complete(self) -> None:
        assert self._serving is not None
        cast(Joined, self._serving.transport).flush()
        self._serving = self.pipeline[-1][0] if self.pipeline else self.cycle
        super().on_response_complete()
        if self.transport.is_closing():
            self._watch_flush()
        elif self.cycle.response_complete and not self._in_head:
            self._unset_keepalive_if_required()
            self._arm(_LINGER_SECONDS, self.transport.close)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_flush()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._watch_flush()

    def _watch_flush(self, before: int | None = None) -> None:
        """Hang up on a client that takes next to nothing for ``slow_reader_timeout_s``. A
        stream sees that itself, and first."""
        seconds = self.door.settings.slow_reader_timeout_s
        if before is None and self._flush_timer is not None:
            return
        self._flush_timer = None
        left = self.transport.get_write_buffer_size()
        if left and before is not None and left > before - _LEAST_BYTES:
            self.hang_up()
        elif left and seconds:
            later = seconds + _LINGER_SECONDS
            self._flush_timer = self.loop.call_later(later, self._watch_flush, left)

    def _refuse(self, error: LlmserveError) -> None:
        """End the connection with ``error``; requests that came whole are answered first."""
        self._refused = True
        self._disarm()
        cycle = self.cycle
        if self._in_head and self._busy:
            cycle.keep_alive = False
        elif self._in_head:
            self._answer(error)
        elif cycle is self._serving and not cycle.response_started:
            self._leave()
            self._answer(error)
        else:
            self._leave()
            self.transport.close()
            self._watch_flush()

    def _answer(self, error: LlmserveError) -> None:
        if self._serving is not None:
            cast(Joined, self._serving.transport).flush()
        self.transport.write(refusal(error, self._path(), self.server_state.default_headers))
        self.transport.write_eof()
        self._arm(_LINGER_SECONDS, self.transport.abort)
        log.debug("refused: %s", error.message)

    # --- helpers

    @property
    def _busy(self) -> bool:
        return self._serving is not None and not self._serving.response_complete

    def _leave(self) -> None:
        """Tell the requests of this connection that their client is gone."""
        for cycle in (self._serving, *(queued for queued, _ in self.pipeline), self.cycle):
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
                _lent(cycle).lose()
        self.flow.resume_writing()

    def _head_late(self) -> None:
        self._timer = None
        seconds = self.door.settings.header_timeout_s
        if self.transport.is_closing():
            return
        if self.flow.read_paused:
            self._arm(seconds, self._head_late)
        elif self._unread and not self._surplus:
            self._refuse(RequestTimeout(f"The headers did not arrive within {seconds:g} s."))
        else:
            self.transport.close()

    def _too_large(self) -> HeadersTooLarge:
        most = self.door.settings.max_header_bytes
        return HeadersTooLarge(
            f"The request line and headers are larger than the limit of {most} bytes."
        )

    def _path(self) -> str:
        return path_of(getattr(self, "url", b""))

    def _arm(self, seconds: float, then: Callable[..., Any]) -> None:
        self._disarm()
        if seconds:
            self._timer = self.loop.call_later(seconds, then)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _lent(cycle: RequestResponseCycle) -> Lent:
    lent = lent_to(cast(Scope, cycle.scope))
    assert lent is not None
    return lent
