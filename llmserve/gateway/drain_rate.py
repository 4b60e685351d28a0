"""When to come back: from the rate at which requests have really been finishing."""

from __future__ import annotations

_SMOOTHING = 0.1
_FIRST_GUESS_SECONDS = 1.0
MAX_SECONDS = 60.0
"""What openai-python obeys: it takes a Retry-After of up to 60 seconds, and falls back to
its own, shorter waits beyond (openai 2.x, ``_base_client.py``)."""


class DrainRate:
    """The smoothed time between two ends of requests while the server is busy."""

    def __init__(self) -> None:
        self._interval: float | None = None
        self._last = 0.0

    @property
    def interval(self) -> float:
        """Seconds."""
        return _FIRST_GUESS_SECONDS if self._interval is None else self._interval

    def begin(self, now: float) -> None:
        """The server was idle until now; idle time says nothing about its speed."""
        self._last = now

    def ended(self, now: float) -> None:
        """A request has ended."""
        interval, self._last = now - self._last, now
        if self._interval is None:
            self._interval = interval
        else:
            self._interval += _SMOOTHING * (interval - self._interval)


class Bookings:
    """The places that have been promised to one caller's refused requests.

    Everybody told "in 5 seconds" would come back together and be refused together. So
    each refusal books the next place, and the next one is told a later time.
    """

    def __init__(self) -> None:
        self._until = 0.0

    def next(self, interval: float, ahead: int, now: float) -> float:
        """Seconds until a place will be free for one more, behind ``ahead`` others and
        those promised before, when one is free every ``interval`` seconds."""
        place = max(self._until, now + ahead * interval) + interval
        # A promise beyond the longest time is none: that client will ask again before.
        self._until = min(place, now + MAX_SECONDS)
        return min(MAX_SECONDS, place - now)

    def forget(self) -> None:
        """There is room again: whoever comes back finds it, promised or not."""
        self._until = 0.0
