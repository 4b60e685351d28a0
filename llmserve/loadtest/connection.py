"""HTTP/1.1 for a load generator: connections that are kept, one request at a time on each.

An ``asyncio.Protocol`` over httptools, because client and server often share a machine: the
common HTTP clients cost several times as much for each piece of a stream.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from typing import Protocol, cast

import httptools


class Sink(Protocol):
    """Takes a response while it arrives. Whatever it raises ends the exchange."""

    def begin(self, status: int, kind: str) -> None:
        """The head has arrived: status and content type."""

    def feed(self, now: float, data: bytes) -> None:
        """A piece of the body has arrived at ``now`` (``time.perf_counter``)."""


class Broken(Exception):
    """The connection ended before the response did. ``begun``: after its first byte."""

    def __init__(self, detail: str, *, begun: bool) -> None:
        super().__init__(detail)
        self.begun = begun


class Connection(asyncio.Protocol):
    """One connection. Its callbacks are asyncio's and httptools'."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._done: asyncio.Future[None] | None = None
        self._now = 0.0
        self._begun = False
        self.reusable = False

    async def ask(self, request: bytes, sink: Sink) -> None:
        """Send one request, hand the response to ``sink`` while it arrives, and return when
        it is complete. Raises ``Broken``, and whatever ``sink`` raises."""
        self.reusable = self._begun = self._framed = False
        self._status = 0
        self._kind = ""
        self._sink = sink
        self._parser = httptools.HttpResponseParser(self)
        if self._transport is None or not self.open:
            raise Broken("the server closed the connection", begun=False)
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        await self._done

    @property
    def open(self) -> bool:
        """Whether a request can be sent, as far as one can know."""
        return self._transport is not None and not self._transport.is_closing()

    def close(self) -> None:
        """Close without waiting; nothing more is taken."""
        self._done = None
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        self._now = time.perf_counter()
        self._begun = True
        if self._done is None:
            self.close()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError as error:
            # What a callback raised is the error's context; cause is not set.
            self._fail(error.__context__ or error)
        except httptools.HttpParserError as error:
            self._fail(Broken(f"not HTTP: {error}", begun=True))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._done is None:
            return
        if self._status and not self._framed and exc is None:
            self._finish()  # a response without a length ends with its connection
        else:
            detail = f"the server closed the connection: {exc or 'end of file'}"
            self._fail(Broken(detail, begun=self._begun))

    def on_header(self, name: bytes, value: bytes) -> None:
        match name.lower():
            case b"content-type":
                self._kind = value.decode("latin-1").lower()
            case b"content-length" | b"transfer-encoding":
                self._framed = True

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200:  # others are interim: the real head follows
            self._status = status
            self._sink.begin(status, self._kind)

    def on_body(self, body: bytes) -> None:
        self._sink.feed(self._now, body)

    def on_message_complete(self) -> None:
        if self._status:
            self.reusable = self._parser.should_keep_alive()
            self._finish()

    def _finish(self) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_result(None)
        self._done = None

    def _fail(self, error: BaseException) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(error)
        self._done = None


class Pool:
    """Kept connections to one server. Those that are idle are as many as were ever busy at
    once; the load bounds that."""

    def __init__(self, host: str, port: int, *, tls: bool) -> None:
        self._host = host
        self._port = port
        self._tls = ssl.create_default_context() if tls else None
        self._idle: list[Connection] = []
        self.resent = 0
        """Requests that were sent again because the kept connection was closed at that moment."""

    async def ask(self, request: bytes, sink: Sink) -> None:
        """Send one request on a kept connection or a new one. Raises ``OSError`` when there
        is no connection, otherwise what ``Connection.ask`` raises. Cancelling closes the
        connection, which is how the server learns of it."""
        while self._idle:
            # The last one used: it is the least likely to have been closed meanwhile.
            connection = self._idle.pop()
            if not connection.open:
                continue
            try:
                return await self._on(connection, request, sink)
            except Broken as broken:
                if broken.begun:
                    raise
                self.resent += 1
        connection = await self._connect()
        return await self._on(connection, request, sink)

    def close(self) -> None:
        """Close what is idle."""
        while self._idle:
            self._idle.pop().close()

    async def _on(self, connection: Connection, request: bytes, sink: Sink) -> None:
        try:
            await connection.ask(request, sink)
        except BaseException:
            connection.close()
            raise
        if connection.reusable:
            self._idle.append(connection)
        else:
            connection.close()

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            Connection, self._host, self._port, ssl=self._tls
        )
        return connection
