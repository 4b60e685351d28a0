"""What zmq says over a socket (ZMTP 3.0, https://rfc.zeromq.org/spec/23/), on the event loop.

zmq reads and writes in a thread of its own, which wakes the event loop and is woken by it for
each message: more CPU time than everything else that is done with a step of one token. Here
the event loop reads the socket of a zmq peer in another process itself. Only what is needed
for that: a peer that connects, no authentication, no heartbeat.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

Message = list[bytes | bytearray]
"""The frames of a message. The first is bytes, all others can be written to."""

_GREETING_BYTES = 64
_GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
_MORE, _LONG, _COMMAND = 1, 2, 4
_READY = b"\x05READY"
_SHORT_BYTES = 255


class ProtocolError(Exception):
    """The peer says something that ZMTP does not allow, or that is not spoken here."""


class Peer(asyncio.Protocol):
    """One connection. ``kind`` is the zmq socket that we are to the peer ("ROUTER", "PULL").
    ``received`` is given the messages that came together; what it raises ends the connection.
    ``lost`` is called once when that has ended, with the reason if there is one.

    ``ready`` is done when both have introduced themselves: nothing can be sent before.
    """

    def __init__(
        self,
        kind: bytes,
        received: Callable[[list[Message]], None],
        lost: Callable[[Exception | None], None],
    ) -> None:
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._kind = kind
        self._received = received
        self._lost = lost
        self._transport: Any = None
        self._greeted = False
        self._rest = bytearray()
        self._needed = _GREETING_BYTES
        self._message: Message = []

    def send(self, frames: Sequence[Any]) -> None:
        """Send a message; each frame is a buffer of bytes. Not while ``closing``."""
        parts: list[Any] = []
        last = len(frames) - 1
        for n, frame in enumerate(frames):
            more = _MORE if n < last else 0
            size = len(frame) if type(frame) is bytes else memoryview(frame).nbytes
            if size <= _SHORT_BYTES:
                parts += (bytes((more, size)), frame)
            else:
                parts += (bytes((more | _LONG,)) + size.to_bytes(8, "big"), frame)
        self._transport.writelines(parts)

    @property
    def closing(self) -> bool:
        """Whether the connection has ended, or is about to."""
        return self._transport is None or bool(self._transport.is_closing())

    def close(self) -> None:
        """End the connection once what was sent is gone; idempotent."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._transport.write(_GREETING)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(exc)

    def data_received(self, data: bytes) -> None:
        if self._rest or len(data) < self._needed:
            self._rest += data
            if len(self._rest) < self._needed:
                return
            data = bytes(self._rest)
            self._rest.clear()
        try:
            if not self._greeted:
                data = self._greet(data)
            if messages := self._read(data):
                self._received(messages)
        except Exception as error:
            self._transport.abort()
            self._end(error)

    def _end(self, error: Exception | None) -> None:
        if not self.ready.done():
            self.ready.set_exception(error or ProtocolError("the peer went before it was ready"))
        lost, self._lost = self._lost, _nothing
        lost(error)

    def _greet(self, data: bytes) -> bytes:
        """Read the peer's greeting; returns what follows it."""
        speaks = data[0] == 0xFF and data[9] == 0x7F and data[10] >= 3
        if not speaks or data[12:32].rstrip(b"\0") != b"NULL":
            raise ProtocolError(f"not a greeting: {data[:_GREETING_BYTES]!r}")
        self._greeted = True
        name, value = b"Socket-Type", self._kind
        said = _READY + bytes((len(name),)) + name + len(value).to_bytes(4, "big") + value
        self._transport.write(bytes((_COMMAND, len(said))) + said)
        return data[_GREETING_BYTES:]

    def _read(self, data: bytes) -> list[Message]:
        """Complete messages in ``data``; keeps what is not complete."""
        at, end, messages = 0, len(data), []
        self._needed = 1
        while at < end:
            flags = data[at]
            begin = at + (9 if flags & _LONG else 2)
            stop = begin + int.from_bytes(data[at + 1 : begin], "big")
            if begin > end or stop > end:
                self._rest += memoryview(data)[at:]
                self._needed = (begin if begin > end else stop) - at
                break
            if flags & _COMMAND:
                self._command(data[begin:stop])
            else:
                body = data[begin:stop]
                self._message.append(bytearray(body) if self._message else body)
                if not flags & _MORE:
                    messages.append(self._message)
                    self._message = []
            at = stop
        return messages

    def _command(self, body: bytes) -> None:
        if not body.startswith(_READY) or self.ready.done():
            raise ProtocolError(f"an unexpected command: {body[:80]!r}")
        self.ready.set_result(None)


def _nothing(_: Exception | None) -> None:
    """The end has been told."""
