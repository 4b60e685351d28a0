"""The requests that are under way: to be listed, and to be ended by whoever may."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from llmserve.errors import LlmserveError
from llmserve.gateway.deadline import Deadline
from llmserve.gateway.entry import Entry
from llmserve.types import Caller, Scope


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One request under way."""

    entry: Entry
    deadline: Deadline

    @property
    def stage(self) -> str:
        """``queued``, ``prefill`` (in the engine, no token yet) or ``decode``."""
        if not self.entry.admitted:
            return "queued"
        return "decode" if self.entry.meter.tokens_so_far else "prefill"

    @property
    def age(self) -> float:
        """Seconds since the request arrived."""
        return time.monotonic() - self.entry.started


class Running:
    """All requests under way. Bounded by admission."""

    def __init__(self) -> None:
        self._jobs: set[Job] = set()

    def add(self, job: Job) -> None:
        """It begins."""
        self._jobs.add(job)

    def remove(self, job: Job) -> None:
        """It has ended."""
        self._jobs.discard(job)

    def visible_to(self, caller: Caller) -> list[Job]:
        """The caller's own requests; all of them for an administrator. The oldest first."""
        everything = Scope.ADMIN in caller.scopes
        jobs = [job for job in self._jobs if everything or job.entry.caller.id == caller.id]
        return sorted(jobs, key=lambda job: job.entry.started)

    def stop(self, jobs: list[Job], error: Callable[[], LlmserveError]) -> None:
        """End these requests, each with an error of its own."""
        for job in jobs:
            job.deadline.stop(error())

    def stop_all(self, error: Callable[[], LlmserveError]) -> None:
        """End every request."""
        self.stop(list(self._jobs), error)
