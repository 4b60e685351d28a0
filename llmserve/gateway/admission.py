"""How much work is taken on at once. A permit is taken before any header is sent and
travels with the stream; past the bound the answer is no, at once, with an honest time to
come back.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from llmserve.errors import Draining, InvalidRequest, Overloaded, RateLimited
from llmserve.gateway.demand import Demand
from llmserve.gateway.drain_rate import DrainRate
from llmserve.gateway.fairness import Lane, Lanes, Ticket
from llmserve.settings import AdmissionSettings
from llmserve.types import Caller, Meter

_DRAINING_RETRY_SECONDS = 1.0


class Permit:
    """One request's place. ``granted`` is done when it may go to the engine (``None``: it
    could at once); ``release`` gives the place back, whatever state it is in."""

    __slots__ = ("_admission", "granted", "ticket")

    def __init__(self, admission: Admission, ticket: Ticket) -> None:
        self._admission = admission
        self.ticket = ticket
        self.granted: asyncio.Future[None] | None = None

    @property
    def is_granted(self) -> bool:
        """Whether it may go to the engine."""
        return self.granted is None or self.granted.done()

    def release(self) -> None:
        """Idempotent."""
        if self.granted is not None:
            self.granted.cancel()
        self._admission.release(self)


class Admission:
    """The bounds of one model: requests, and their prompt tokens, that run and that wait.

    ``slots`` tells how many requests the engine can run together, for as long as the
    settings do not say.
    """

    def __init__(
        self,
        settings: AdmissionSettings,
        slots: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._slots = slots
        self._clock = clock
        self._lanes = Lanes()
        self._permits: dict[Ticket, Permit] = {}
        self._drain = DrainRate()
        self.running = 0
        self.running_sequences = 0
        self.waiting = 0
        self.running_prompt_tokens = 0
        self.waiting_prompt_tokens = 0
        self.leaving = False
        """The server is not ready any more, and still takes requests for a while."""
        self.draining = False

    @property
    def in_flight(self) -> int:
        """Requests that wait or run."""
        return self.running + self.waiting

    @property
    def max_running(self) -> int:
        """Most requests in the engine at once."""
        return self._settings.max_running or self._slots()

    def check_open(self) -> None:
        """Raises ``Draining`` while the server shuts down."""
        if self.draining:
            raise Draining(
                "The server is shutting down and takes no new requests.",
                retry_after=_DRAINING_RETRY_SECONDS,
            )

    def enter(self, caller: Caller, demand: Demand, meter: Meter) -> Permit:
        """A permit, granted at once or waiting for its turn. A request of priority 5 waits
        as if it had come five seconds later, among those of its own caller.

        Raises ``Draining``, ``Overloaded`` (the server is full), ``RateLimited`` (this
        caller holds its share of a busy server), ``InvalidRequest`` (it can never fit).
        """
        self.check_open()
        self._check_possible(caller, demand)
        lane = self._lanes.of(caller)
        ticket = Ticket(lane, demand, self._clock() + demand.priority, meter)
        permit = Permit(self, ticket)
        if not self.in_flight:
            self._drain.begin(self._clock())
        if self._fits(ticket) and self._following() is None:
            self._permits[ticket] = permit
            self._start(ticket)
            return permit
        self._check_room(ticket)
        permit.granted = asyncio.get_running_loop().create_future()
        self._permits[ticket] = permit
        lane.push(ticket)
        self.waiting += 1
        self.waiting_prompt_tokens += ticket.prompt_tokens
        self._dispatch()
        return permit

    def release(self, permit: Permit) -> None:
        """The request has ended, or has given up waiting."""
        ticket = permit.ticket
        if self._permits.pop(ticket, None) is None:
            return
        if ticket.waiting:
            self._stop_waiting(ticket)
        else:
            ticket.lane.charge((ticket,))
            ticket.lane.running.discard(ticket)
            self.running -= 1
            self.running_sequences -= ticket.sequences
            self.running_prompt_tokens -= ticket.prompt_tokens
            self._drain.ended(self._clock())
        self._dispatch()
        if not self.in_flight:
            self._lanes.reset()

    def _dispatch(self) -> None:
        """Start whoever is next, as long as there is room."""
        while (following := self._following()) is not None and self._has_room(following):
            self._stop_waiting(following)
            self._start(following)

    def _following(self) -> Ticket | None:
        """Whose turn it is among those who wait. Whoever holds its share is passed over;
        whoever is too large for the room that is left at this moment is not, or it would
        wait for ever."""
        if not self.waiting:
            return None
        heads = (lane.head() for lane in self._lanes.in_turn())
        return next((head for head in heads if head is not None and self._may_run(head)), None)

    def _stop_waiting(self, ticket: Ticket) -> None:
        ticket.lane.leave(ticket)
        self.waiting -= 1
        self.waiting_prompt_tokens -= ticket.prompt_tokens

    def _start(self, ticket: Ticket) -> None:
        self.running += 1
        self.running_sequences += ticket.sequences
        self.running_prompt_tokens += ticket.prompt_tokens
        ticket.lane.running.add(ticket)
        ticket.lane.charge((ticket,))
        self._lanes.served(ticket.lane)
        granted = self._permits[ticket].granted
        if granted is not None and not granted.done():
            granted.set_result(None)

    def _fits(self, ticket: Ticket) -> bool:
        return self._may_run(ticket) and self._has_room(ticket)

    def _has_room(self, ticket: Ticket) -> bool:
        """Room in the engine; there always is some for one request alone."""
        if not self.running:
            return True
        tokens = self.running_prompt_tokens + ticket.prompt_tokens
        return (
            self.running < self.max_running
            and self.running_sequences + ticket.sequences <= self._slots()
            and tokens <= self._settings.max_running_prompt_tokens
        )

    def _may_run(self, ticket: Ticket) -> bool:
        lane = ticket.lane
        return self._within_share(lane, len(lane.running), self.running, self.max_running)

    def _check_possible(self, caller: Caller, demand: Demand) -> None:
        """Refuse what can never run, or could only run by pushing everybody else out."""
        most = self._settings.max_running_prompt_tokens
        if demand.prompt_tokens > most:
            raise InvalidRequest(
                f"The prompt has about {demand.prompt_tokens} tokens; this server takes on at "
                f"most {most} prompt tokens at once (admission.max_running_prompt_tokens).",
                code="context_length_exceeded",
            )
        reserved = 0.0 if caller.is_anonymous else self._settings.reserved_share
        places = max(1, int(self._slots() * (1 - reserved)))
        if demand.sequences > places:
            raise InvalidRequest(
                f"The request asks for {demand.sequences} answers at once (prompts times n); at "
                f"most {places} of one request can run together here. Send several requests.",
                param="n",
            )

    def _check_room(self, ticket: Ticket) -> None:
        """Refuse what may not even wait."""
        settings = self._settings
        free = settings.max_queue - self.waiting
        tokens = self.waiting_prompt_tokens + ticket.prompt_tokens
        if free <= 0 or tokens > settings.max_queued_prompt_tokens:
            raise Overloaded(
                f"The server is full: {self.running} requests run and {self.waiting} wait.",
                retry_after=self._retry_after(ticket.lane),
            )
        lane, places = ticket.lane, settings.max_queue
        within = self._within_share(lane, lane.waiting, self.waiting, places)
        if not within or self._is_others(lane, free, places):
            raise RateLimited(
                f"You have {ticket.lane.waiting} requests waiting, which is your share of a busy "
                "server.",
                retry_after=self._retry_after(ticket.lane),
            )

    def _within_share(self, lane: Lane, held: int, taken: int, places: int) -> bool:
        """The dynamic threshold, and the last place is for somebody who has less than an
        even part. Without keys there is only one caller, and no share."""
        reserved = self._settings.reserved_share
        if lane.caller.is_anonymous or not reserved:
            return True
        free = places - taken
        if free <= 1 and held >= max(1, places / (self._lanes.active(lane) + 1)):
            return False
        return held * reserved < free * (1 - reserved) * self._lanes.relative_weight(lane)

    def _is_others(self, lane: Lane, free: int, places: int) -> bool:
        """Whether what is free is kept for others. Whoever has less than an even part may
        always have it."""
        if lane.caller.is_anonymous or not self._settings.reserved_share:
            return False
        return lane.waiting >= self._lanes.part(lane, places) and (
            free <= self._lanes.owed(lane, places)
        )

    def _retry_after(self, lane: Lane) -> float:
        """The caller's next place, at the rate that is its share of the whole."""
        share = self._lanes.relative_weight(lane) / self._lanes.active(lane)
        return lane.bookings.next(self._drain.interval / share, lane.waiting, self._clock())
