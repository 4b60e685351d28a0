"""So many new requests in each turn of the event loop.

When many requests come together, the work that each of them is (its body, its place, its
prompt) would be done for all of them before any token of the streams that are under way is
sent. Between two new requests and the next two, the streams have their turn. What is
refused without a look at its body (no key, no such route) does not stand in line.
"""

from __future__ import annotations

import asyncio
from collections import deque

AT_ONCE = 2


class Turnstile:
    """Lets ``most`` through in each turn of the event loop, in the order in which they
    came."""

    def __init__(self, most: int = AT_ONCE) -> None:
        self._most = most
        self._entered = 0
        self._queue: deque[asyncio.Future[None]] = deque()

    async def enter(self) -> None:
        """Wait until it is this one's turn."""
        if self._entered == 0:
            asyncio.get_running_loop().call_soon(self._next_turn)
        elif self._entered >= self._most:
            waiting = asyncio.get_running_loop().create_future()
            self._queue.append(waiting)
            await waiting
            return
        self._entered += 1

    def _next_turn(self) -> None:
        self._entered = 0
        while self._queue and self._entered < self._most:
            waiting = self._queue.popleft()
            if not waiting.done():
                self._entered += 1
                waiting.set_result(None)
        if self._entered:
            asyncio.get_running_loop().call_soon(self._next_turn)
