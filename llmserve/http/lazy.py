"""What a connection of uvicorn's has from the beginning and hardly ever needs, made when it
is needed: a deque is 0.7 kB, and each idle stream would have three."""

from __future__ import annotations

import asyncio
from typing import Any


class LazyEvent:
    """An ``asyncio.Event`` that is made when somebody has to wait for it."""

    __slots__ = ("_event", "_is_set")

    def __init__(self) -> None:
        self._event: asyncio.Event | None = None
        self._is_set = False

    def is_set(self) -> bool:
        """As the event's."""
        return self._is_set

    def set(self) -> None:
        """As the event's."""
        self._is_set = True
        if self._event is not None:
            self._event.set()

    def clear(self) -> None:
        """As the event's."""
        self._is_set = False
        if self._event is not None:
            self._event.clear()

    async def wait(self) -> bool:
        """As the event's."""
        if self._is_set:
            return True
        if self._event is None:
            self._event = asyncio.Event()
        return await self._event.wait()


class Pipeline(list[Any]):
    """The requests that wait behind the one in progress, the next one last: as much of a
    deque as uvicorn uses. They are few."""

    __slots__ = ()

    def appendleft(self, item: Any) -> None:
        """As a deque's."""
        self.insert(0, item)
