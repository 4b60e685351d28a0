"""How long each stage of a start takes."""

from __future__ import annotations

from llmserve.types import Stage

_NOT_STARTING = {Stage.READY, Stage.STALLED, Stage.FAILED, Stage.STOPPED}


class Timeline:
    """The stages of the newest start, in the order in which they were entered. Times are
    ``time.monotonic()``."""

    def __init__(self, stage: Stage, began: float) -> None:
        self._spent: dict[Stage, float] = {}
        self._stage = stage
        self._since = began

    def begin_at(self, began: float) -> None:
        """Count the stage that we are in from this time on."""
        self._since = began

    def enter(self, stage: Stage, now: float) -> None:
        """The stage before ends here. A restart begins a new timeline."""
        self._spent = {} if stage is Stage.RESTARTING else self.seconds(now)
        self._stage, self._since = stage, now

    def seconds(self, now: float) -> dict[Stage, float]:
        """What each stage took; of the one that we are in, so far."""
        spent = dict(self._spent)
        if self._stage not in _NOT_STARTING:
            spent[self._stage] = spent.get(self._stage, 0.0) + now - self._since
        return spent


def in_words(seconds: dict[Stage, float]) -> str:
    """For the log: ``9.8 s (starting 0.7, importing 4.1, …)``."""
    parts = ", ".join(f"{stage.value} {spent:.1f}" for stage, spent in seconds.items())
    return f"{sum(seconds.values()):.1f} s ({parts})"
