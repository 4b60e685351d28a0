"""The short way out of a stream that has begun: from the engine to the connection, past
everything that has to be done once for a response and not once for a token.

The server that runs us (``connection.Connection``) lends the way; under another one there is
none, and every frame takes the long way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.types import Scope

from llmserve.http.lent import lent_to

SendNow = Callable[[bytes], bool]
"""Writes to the connection at once, unless it cannot take more at the moment."""


class Outlet:
    """The short way of one response. ``sent_at``: when something last went through it, in
    the loop's time."""

    __slots__ = ("_clock", "_open", "_send_now", "sent_at")

    def __init__(self, scope: Scope) -> None:
        self.sent_at = 0.0
        lent = lent_to(scope)
        self._send_now: SendNow | None = None if lent is None else lent.send_now
        self._clock = asyncio.get_running_loop().time
        self._open = False

    def open(self) -> None:
        """The response has begun; from now on frames may go out."""
        self._open = self._send_now is not None

    def close(self) -> None:
        """The response ends."""
        self._open = False

    def write(self, frame: bytes) -> bool:
        """Send a whole frame now. False when that is not possible at this moment."""
        if not self._open:
            return False
        assert self._send_now is not None
        self.sent_at = self._clock()
        return self._send_now(frame)

    def write_data(self, data: bytes) -> bool:
        """As ``write``, for the data of an event that has nothing else."""
        return self.write(b"data: %b\n\n" % data)
