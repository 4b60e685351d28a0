"""Whose turn it is: fair shares between callers, in tokens.

Two published rules, because requests are not alike and clients are not modest:

* **Order** is by a virtual token counter (Sheng et al., "Fairness in Serving Large Language
  Models", OSDI 2024): what each caller has been served, in tokens over its weight; the
  least served caller is next. A caller that comes back from idleness is lifted to the
  level of the others, so that nobody saves up a right to flood.
* **Space** is by a dynamic threshold (Choudhury and Hahne, "Dynamic Queue Length
  Thresholds for Shared-Memory Packet Switches", 1998): a caller may hold no more places
  than a multiple of those still free. One caller alone gets nearly all of them, ten
  flooders share them, and there is always a place left for one who has none. Of the
  places to wait in, half of everybody's even part is kept for whoever has requests here:
  the answer to one request must not cost the same caller's next one its place.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable

from llmserve.gateway.demand import Demand
from llmserve.gateway.drain_rate import Bookings
from llmserve.types import Caller, Meter

PROMPT_WEIGHT = 1.0
COMPLETION_WEIGHT = 2.0
"""What a token costs the engine; the values of the paper."""


class Ticket:
    """One request's place: waiting in its caller's lane, then running."""

    __slots__ = ("charged", "lane", "meter", "place", "prompt_tokens", "sequences", "waiting")

    def __init__(self, lane: Lane, demand: Demand, place: float, meter: Meter) -> None:
        self.lane = lane
        self.prompt_tokens = demand.prompt_tokens
        self.sequences = demand.sequences
        self.place = place
        self.meter = meter
        self.charged = 0.0
        self.waiting = False

    def cost(self) -> float:
        """What it has cost so far; the prompt by its estimate until it has been counted."""
        prompt = self.meter.prompt_tokens or self.prompt_tokens
        return PROMPT_WEIGHT * prompt + COMPLETION_WEIGHT * self.meter.tokens_so_far


class Lane:
    """The requests of one caller, and what it has been served."""

    def __init__(self, caller: Caller) -> None:
        self.caller = caller
        self.service = 0.0
        self.running: set[Ticket] = set()
        self.waiting = 0
        self.bookings = Bookings()
        self._heap: list[tuple[float, int, Ticket]] = []
        self._arrivals = itertools.count()

    def push(self, ticket: Ticket) -> None:
        """Wait. Places are times, so that whoever waits long enough is first."""
        ticket.waiting = True
        self.waiting += 1
        heapq.heappush(self._heap, (ticket.place, next(self._arrivals), ticket))

    def leave(self, ticket: Ticket) -> None:
        """Stop waiting, from anywhere in the lane."""
        ticket.waiting = False
        self.waiting -= 1
        if not self.waiting:
            self.bookings.forget()
        # Tickets that have left are dropped when they come to the head, or all at once.
        if len(self._heap) > 2 * self.waiting + 16:
            self._heap = [item for item in self._heap if item[2].waiting]
            heapq.heapify(self._heap)

    def head(self) -> Ticket | None:
        """Who is next here."""
        while self._heap and not self._heap[0][2].waiting:
            heapq.heappop(self._heap)
        return self._heap[0][2] if self._heap else None

    def charge(self, tickets: Iterable[Ticket]) -> None:
        """Count what these requests have used since they were last charged."""
        for ticket in tickets:
            cost = ticket.cost()
            self.service += (cost - ticket.charged) / self.caller.weight
            ticket.charged = cost


class Lanes:
    """One lane for each caller, as long as there is any request at all."""

    def __init__(self) -> None:
        self._lanes: dict[str, Lane] = {}
        self._level = 0.0

    def of(self, caller: Caller) -> Lane:
        """The caller's lane. Nobody comes back from idleness with a lead: its counter is
        lifted to the least of those who wait, or of whoever was served last."""
        lane = self._lanes.get(caller.id)
        if lane is None:
            lane = self._lanes[caller.id] = Lane(caller)
        lane.caller = caller
        if not lane.waiting:
            others = [other.service for other in self._lanes.values() if other.waiting]
            lane.service = max(lane.service, min(others, default=self._level))
        return lane

    def active(self, lane: Lane) -> int:
        """How many callers have requests here, ``lane`` counted among them."""
        return len(self._busy(lane))

    def relative_weight(self, lane: Lane) -> float:
        """The caller's weight over the mean of those who have requests here."""
        busy = self._busy(lane)
        return lane.caller.weight * len(busy) / sum(each.caller.weight for each in busy)

    def part(self, lane: Lane, places: int) -> float:
        """The caller's even part of so many places."""
        return places * self.relative_weight(lane) / self.active(lane)

    def owed(self, lane: Lane, places: int) -> float:
        """Waiting places to be kept for the other callers who have requests here: for each
        of them what it lacks of half its even part."""
        busy = self._busy(lane)
        weights = sum(each.caller.weight for each in busy)
        return sum(
            max(0.0, places * each.caller.weight / weights / 2 - each.waiting)
            for each in busy
            if each is not lane
        )

    def _busy(self, lane: Lane) -> list[Lane]:
        lanes = self._lanes.values()
        return [each for each in lanes if each is lane or each.waiting or each.running]

    def in_turn(self) -> list[Lane]:
        """The lanes in which somebody waits, the least served first."""
        waiting = [lane for lane in self._lanes.values() if lane.waiting]
        if len(waiting) > 1:
            for lane in waiting:
                lane.charge(lane.running)
            waiting.sort(key=lambda lane: lane.service)
        return waiting

    def served(self, lane: Lane) -> None:
        """A request of this lane starts."""
        self._level = lane.service

    def reset(self) -> None:
        """Nobody is here: whatever comes next starts even."""
        self._lanes.clear()
        self._level = 0.0
