"""The head of a response and the first of its body in one write.

uvicorn writes them one after the other, and each write wakes the client: the first one for
nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any


class Joined:
    """The transport of one response, as far as uvicorn's ``RequestResponseCycle`` knows it.
    What is written first waits for the next write, until the end of this turn of the event
    loop at most."""

    __slots__ = ("_first", "_transport", "write")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._first: bytes | None = None
        self.write: Callable[[bytes], Any] = self._hold

    def close(self) -> None:
        """Close it; what was written is sent."""
        self.flush()
        self._transport.close()

    def is_closing(self) -> bool:
        """As the transport's."""
        return self._transport.is_closing()

    def _hold(self, data: bytes) -> None:
        self._first = data
        self.write = self._join
        asyncio.get_running_loop().call_soon(self.flush)

    def _join(self, data: bytes) -> None:
        first, self._first = self._first, None
        self.write = self._transport.write
        self._transport.write(data if first is None else first + data)

    def flush(self) -> None:
        """Send what waits."""
        if self._first is not None and not self._transport.is_closing():
            self._join(b"")
