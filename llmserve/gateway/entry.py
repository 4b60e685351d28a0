"""The account of one request: opened when it arrives, closed when it has ended.

Opened and closed in one place (``http.middleware``), so every request ends in exactly
one outcome; whoever learns first how it ended says so.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from llmserve.errors import (
    Aborted,
    Cancelled,
    ClientError,
    DeadlineExceeded,
    Draining,
    NotImplementedHere,
    RateLimited,
    Unavailable,
)
from llmserve.types import ANONYMOUS, Caller, Meter, Outcome

UNKNOWN_MODEL = "-"
"""Model label of a request that never reached a model. Names that clients make up must
not become labels."""


@dataclass(slots=True)
class Entry:
    """One request. ``started`` is ``time.monotonic()``; ``admitted`` tells a refusal from
    a failure once the engine had the request. ``headers`` go out with the response.
    ``from_cache``: the engine did nothing for it, and its meter only says what the answer
    is worth."""

    id: str
    route: str
    model: str = UNKNOWN_MODEL
    caller: Caller = ANONYMOUS
    admitted: bool = False
    from_cache: bool = False
    meter: Meter = field(default_factory=Meter)
    headers: dict[str, str] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)
    admitted_at: float | None = None
    placed: asyncio.Future[None] | None = None
    """Done once the request has its place; a stream sends no header before."""
    outcome: Outcome | None = None
    error_code: str | None = None

    def admit(self) -> None:
        """The request has its place from now on."""
        self.admitted = True
        self.admitted_at = time.monotonic()
        if self.placed is not None and not self.placed.done():
            self.placed.set_result(None)

    def end(self, outcome: Outcome) -> None:
        """Say how the request ended. The first word counts."""
        if self.outcome is None:
            self.outcome = outcome

    def fail(self, error: BaseException) -> None:
        """End it by the error that ended it."""
        if self.outcome is None:
            self.error_code = getattr(error, "code", None)
        self.end(outcome_of(error, admitted=self.admitted))


def outcome_of(error: BaseException, *, admitted: bool) -> Outcome:
    """The outcome that an error stands for."""
    if isinstance(error, DeadlineExceeded):
        return Outcome.TIMEOUT
    if isinstance(error, RateLimited):
        return Outcome.REJECTED
    if isinstance(error, Cancelled):
        return Outcome.CANCELLED
    if isinstance(error, ClientError | NotImplementedHere):
        return Outcome.INVALID
    if isinstance(error, Draining | Aborted) and admitted:
        return Outcome.CANCELLED
    if isinstance(error, Unavailable) and not admitted:
        return Outcome.REJECTED
    return Outcome.FAILED


def outcome_of_status(status: int | None) -> Outcome:
    """The outcome of a request that ended without anybody saying how."""
    if status is None:
        return Outcome.FAILED
    if status in (429, 503):
        return Outcome.REJECTED
    if status >= 500:
        return Outcome.FAILED
    return Outcome.INVALID if status >= 400 else Outcome.COMPLETED
