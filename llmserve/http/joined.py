"""What a response writes in one turn of the event loop, in one write.

uvicorn writes the head, each part of the body and the end one after the other, and each write
is a call to the kernel that wakes the client. At its end a stream has four of them.
"""

from __future__ import annotations

import asyncio


class Joined:
    """The transport of one response, as far as uvicorn's ``RequestResponseCycle`` knows it.
    What is written waits for more, until the end of this turn of the event loop at most."""

    __slots__ = ("_transport", "_waiting")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._waiting = b""

    def write(self, data: bytes) -> None:
        """Send it in this turn."""
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self.flush)
        self._waiting += data

    def write_now(self, data: bytes) -> None:
        """Send it, and what waits before it: for who writes once a turn."""
        if self._waiting:
            data, self._waiting = self._waiting + data, b""
        self._transport.write(data)

    def flush(self) -> None:
        """Send what waits."""
        if self._waiting and not self._transport.is_closing():
            self.write_now(b"")

    def close(self) -> None:
        """Close it; what was written is sent."""
        self.flush()
        self._transport.close()

    def is_closing(self) -> bool:
        """As the transport's."""
        return self._transport.is_closing()
