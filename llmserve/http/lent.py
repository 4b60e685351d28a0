"""What a connection of ours lends to each of its requests, past ASGI. Under another server
there is none, and everything takes ASGI's way."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from llmserve.http.joined import Joined

_KEY = "connection"


class Lent:
    """One request's. ``hang_up`` cuts the connection, unsent data included: to be rid of a
    client that reads nothing.

    The connection sets ``gone`` when the client has gone away, and calls ``on_gone`` if
    somebody wants to know. It sets ``leaving`` when the server ends, and calls
    ``interrupt``, which whoever waits for the body sets."""

    __slots__ = ("_cycle", "gone", "hang_up", "interrupt", "leaving", "on_gone")

    def __init__(self, cycle: RequestResponseCycle, hang_up: Callable[[], None]) -> None:
        self._cycle = cycle
        self.hang_up = hang_up
        self.gone = False
        self.on_gone: Callable[[], None] | None = None
        self.leaving = False
        self.interrupt: Callable[[], None] | None = None

    def send_now(self, data: bytes) -> bool:
        """Send a part of a response that has begun, as uvicorn's ``send`` would; false when
        that one would have to wait, or has a better idea."""
        cycle = self._cycle
        if (
            cycle.flow.write_paused
            or cycle.disconnected
            or not cycle.response_started
            or cycle.response_complete
            or not cycle.chunked_encoding
        ):
            return False
        cast(Joined, cycle.transport).write_now(b"%x\r\n%b\r\n" % (len(data), data))
        return True

    def has_arrived(self) -> bool:
        """Whether the whole body is here, so that nobody has to wait for it."""
        return not self._cycle.more_body

    def lose(self) -> None:
        """The client is gone. A request can be told so twice."""
        self.gone = True
        on_gone, self.on_gone = self.on_gone, None
        if on_gone is not None:
            on_gone()

    def leave(self) -> None:
        """The server ends."""
        self.leaving = True  # For who has not begun to wait for the body yet.
        if self.interrupt is not None:
            self.interrupt()


def lend(scope: Scope, lent: Lent) -> None:
    """Give it to a request."""
    scope["state"][_KEY] = lent


def lent_to(scope: Scope) -> Lent | None:
    """What a request has been lent."""
    return cast("Lent | None", scope.get("state", {}).get(_KEY))
