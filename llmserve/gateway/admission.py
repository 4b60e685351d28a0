"""How much work is taken on at once. A permit is taken before any header is sent and
travels with the stream."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from llmserve.errors import Draining, Overloaded

_RETRY_SECONDS = 1.0


class Admission:
    """Counts permits. Refuses at once when they are all taken, or when draining."""

    def __init__(self, max_running: int) -> None:
        self._max_running = max_running
        self.in_flight = 0
        self.draining = False

    def check_open(self) -> None:
        """Raises ``Draining`` while the server shuts down."""
        if self.draining:
            raise Draining(
                "The server is shutting down and takes no new requests.", retry_after=_RETRY_SECONDS
            )

    @contextmanager
    def permit(self) -> Iterator[None]:
        """Hold a permit. Raises ``Draining`` or ``Overloaded``."""
        self.check_open()
        if self.in_flight >= self._max_running:
            raise Overloaded(
                f"The server is at its limit of {self._max_running} concurrent requests.",
                retry_after=_RETRY_SECONDS,
            )
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1
