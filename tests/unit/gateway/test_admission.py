"""Who gets in, who waits, who is sent away, and when they should come back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from llmserve.errors import Draining, InvalidRequest, Overloaded, RateLimited
from llmserve.gateway.admission import Admission, Permit
from llmserve.gateway.demand import Demand
from llmserve.settings import AdmissionSettings
from llmserve.types import ANONYMOUS, Caller, Meter

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Door:
    """An admission with a clock that stands still, and shorter words for its calls."""

    def __init__(self, **settings: Any) -> None:
        self.clock = Clock()
        self.admission = Admission(AdmissionSettings(**settings), lambda: 8, self.clock)

    def enter(
        self, who: Caller = ANONYMOUS, tokens: int = 10, priority: float = 0, sequences: int = 1
    ) -> Permit:
        self.clock.now += 0.001
        demand = Demand(tokens, sequences=sequences, priority=priority)
        return self.admission.enter(who, demand, Meter())


def running(*permits: Permit) -> list[bool]:
    return [permit.is_granted for permit in permits]


def caller(name: str, weight: float = 1.0) -> Caller:
    return Caller(id=name, name=name, weight=weight)


async def test_a_permit_is_granted_waits_or_is_refused() -> None:
    door = Door(max_running=1, max_queue=1)
    first, second = door.enter(), door.enter()
    assert running(first, second) == [True, False]
    assert (door.admission.running, door.admission.waiting, door.admission.in_flight) == (1, 1, 2)
    with pytest.raises(Overloaded, match="1 requests run and 1 wait"):
        door.enter()
    first.release()
    assert running(second) == [True]
    second.release()
    second.release()
    assert door.admission.in_flight == 0


async def test_no_queue_means_no_waiting() -> None:
    door = Door(max_running=1, max_queue=0)
    first = door.enter()
    with pytest.raises(Overloaded):
        door.enter()
    first.release()
    assert running(door.enter()) == [True]


async def test_the_engine_says_how_many_when_the_settings_do_not() -> None:
    door = Door()
    permits = [door.enter() for _ in range(9)]
    assert running(*permits) == [True] * 8 + [False]


async def test_who_gives_up_waiting_leaves_no_trace() -> None:
    door = Door(max_running=1, max_queue=2)
    first, second, third = door.enter(), door.enter(), door.enter()
    second.release()
    assert (door.admission.waiting, door.admission.waiting_prompt_tokens) == (1, 10)
    first.release()
    assert running(third) == [True]
    third.release()
    assert (door.admission.running_prompt_tokens, door.admission.in_flight) == (0, 0)


async def test_prompt_tokens_are_bounded_like_requests() -> None:
    door = Door(max_running_prompt_tokens=100, max_queued_prompt_tokens=120)
    first, second = door.enter(tokens=60), door.enter(tokens=60)
    assert running(first, second) == [True, False]
    with pytest.raises(Overloaded):
        door.enter(tokens=61)
    third = door.enter(tokens=40)
    assert running(third) == [False], "a small one does not overtake for ever"
    first.release()
    assert running(second, third) == [True, True]


async def test_what_can_never_fit_is_refused_for_good() -> None:
    door = Door(max_running=1, max_queue=0, max_running_prompt_tokens=100)
    door.enter()
    with pytest.raises(InvalidRequest, match=r"about 101 tokens; .* at most 100") as caught:
        door.enter(tokens=101)
    assert caught.value.status == 400


async def test_draining_takes_nobody() -> None:
    door = Door()
    door.admission.draining = True
    with pytest.raises(Draining):
        door.enter()


async def test_priority_is_a_head_start_in_seconds() -> None:
    door = Door(max_running=1)
    first = door.enter()
    normal, later, sooner = door.enter(), door.enter(priority=5), door.enter(priority=-5)
    order = drain(door, first, {"normal": normal, "later": later, "sooner": sooner})
    assert order == ["sooner", "normal", "later"]


async def test_priority_starves_nobody() -> None:
    door = Door(max_running=1)
    first, patient = door.enter(), door.enter(priority=5)
    door.clock.now += 6
    urgent = door.enter(priority=0)
    assert drain(door, first, {"patient": patient, "urgent": urgent}) == ["patient", "urgent"]


def drain(door: Door, holder: Permit, waiting: dict[str, Permit]) -> list[str]:
    """Release one after the other; the names in the order in which they got their turn."""
    order: list[str] = []
    while waiting:
        door.clock.now += 0.1
        holder.release()
        name = next(name for name, permit in waiting.items() if permit.is_granted)
        holder = waiting.pop(name)
        order.append(name)
    return order


async def test_turns_go_to_the_least_served() -> None:
    door = Door(max_running=1)
    flood, quiet = caller("flood"), caller("quiet")
    first = door.enter(flood, tokens=1000)
    waiting = {f"flood{i}": door.enter(flood, tokens=1000) for i in range(3)}
    waiting |= {f"quiet{i}": door.enter(quiet, tokens=100) for i in range(3)}
    order = drain(door, first, waiting)
    # The quiet one starts level with what the flood has been served so far, and its three
    # requests together cost less than one of the other's.
    assert order[:4] == ["flood0", "quiet0", "quiet1", "quiet2"] or order[:3] == [
        "quiet0",
        "quiet1",
        "quiet2",
    ]


@pytest.mark.parametrize(("weight", "share"), [(1.0, 0.5), (3.0, 0.75)])
async def test_a_busy_engine_is_shared_by_weight(weight: float, share: float) -> None:
    door = Door(max_running=1, max_queue=10_000)
    heavy, light = caller("heavy", weight), caller("light")
    holder = door.enter(heavy)
    waiting = {f"heavy{i}": door.enter(heavy, tokens=100) for i in range(200)}
    waiting |= {f"light{i}": door.enter(light, tokens=100) for i in range(200)}
    served = 0
    for _ in range(100):
        holder.release()
        name = next(name for name, permit in waiting.items() if permit.is_granted)
        holder = waiting.pop(name)
        served += name.startswith("heavy")
    assert served / 100 == pytest.approx(share, abs=0.03)


async def test_tokens_generated_count_as_well() -> None:
    door = Door(max_running=2, reserved_share=0)
    talker, quiet = caller("talker"), caller("quiet")
    meter = Meter()
    long_one = door.admission.enter(talker, Demand(10), meter)
    other = door.enter(quiet)
    first, second = door.enter(talker), door.enter(quiet)
    meter.completion_tokens = 5000
    other.release()
    assert running(first, second) == [False, True]
    long_one.release()
    assert running(first) == [True]


async def test_idleness_earns_no_credit() -> None:
    door = Door(max_running=1, max_queue=1000)
    busy, sleeper = caller("busy"), caller("sleeper")
    holder = door.enter(busy, tokens=100)
    for _ in range(50):
        following = door.enter(busy, tokens=100)
        holder.release()
        holder = following
    waiting = {f"busy{i}": door.enter(busy, tokens=100) for i in range(10)}
    waiting |= {f"sleeper{i}": door.enter(sleeper, tokens=100) for i in range(10)}
    order = drain(door, holder, waiting)[:10]
    assert 4 <= sum(name.startswith("sleeper") for name in order) <= 6


async def test_one_key_cannot_take_every_place() -> None:
    door = Door(max_running=8, max_queue=16, reserved_share=0.125)
    flood, quiet = caller("flood"), caller("quiet")
    permits = []
    with pytest.raises(RateLimited, match="which is your share") as caught:
        permits.extend(door.enter(flood) for _ in range(100))
    assert caught.value.status == 429
    while True:
        try:
            permits.append(door.enter(flood))
        except RateLimited:
            break
    assert door.admission.running == 7
    assert door.admission.waiting < 16
    assert running(door.enter(quiet)) == [True], "a place was left for the quiet one"


async def test_the_last_place_is_for_somebody_who_has_none() -> None:
    door = Door(max_running=4, max_queue=8)
    heavy, newcomer = caller("heavy", weight=100), caller("newcomer")
    permits = [door.enter(heavy) for _ in range(10)]
    with pytest.raises(RateLimited):
        door.enter(heavy)
    assert sum(running(*permits)) == 3
    assert running(door.enter(newcomer)) == [True]


async def test_a_place_that_is_kept_needs_no_place_in_the_queue() -> None:
    door = Door(max_running=8, max_queue=16, reserved_share=0.125)
    floods = caller("flood"), caller("surge")
    for flood in floods * 3:
        door.enter(flood)
    for flood in floods:
        told(door, flood)
    assert (door.admission.running, door.admission.waiting) == (7, 16)
    assert running(door.enter(caller("newcomer"))) == [True]


async def test_one_request_cannot_take_the_whole_engine() -> None:
    door = Door(max_queue=8)
    greedy, other = caller("greedy"), caller("other")
    with pytest.raises(InvalidRequest, match=r"asks for 8 answers at once .* at most 7"):
        door.enter(greedy, sequences=8)
    large = door.enter(greedy, sequences=7)
    assert running(large, door.enter(other)) == [True, True]
    waiting = door.enter(other, sequences=2)
    assert running(waiting) == [False], "the engine has room for eight"
    large.release()
    assert running(waiting) == [True]


async def test_a_large_prompt_is_not_overtaken_for_ever() -> None:
    door = Door(max_running_prompt_tokens=100, reserved_share=0)
    small, large = caller("small"), caller("large")
    held = [door.enter(small, tokens=10) for _ in range(3)]
    big = door.enter(large, tokens=90)
    for _ in range(5):
        held.append(door.enter(small, tokens=10))
    assert running(big) == [False]
    for permit in held[:3]:
        permit.release()
    assert running(big) == [True]
    assert not any(running(*held[3:])[1:])


async def test_promises_are_forgotten_when_there_is_room() -> None:
    door = Door(max_running=1, max_queue=1)
    holder, waiting = door.enter(), door.enter()
    for _ in range(20):
        door.clock.now += 1
        holder.release()
        holder, waiting = waiting, door.enter()
    assert [refusal(door.enter) for _ in range(100)][-1] == 60
    waiting.release()
    holder.release()
    door.enter()
    door.enter()
    assert refusal(door.enter) < 4


def told(door: Door, who: Caller) -> float:
    """What the caller is told when it is sent away, after filling its places."""
    while True:
        try:
            door.enter(who)
        except (RateLimited, Overloaded) as error:
            return error.retry_after or 0.0


async def test_a_flood_of_others_is_not_in_the_callers_retry_after() -> None:
    door = Door(max_running=2, max_queue=8)
    flood, quiet = caller("flood"), caller("quiet")
    held = [door.enter(flood)]
    for _ in range(20):
        door.clock.now += 1
        held.pop(0).release()
        held.append(door.enter(flood))
    assert max(told(door, flood) for _ in range(50)) > 50
    assert told(door, quiet) < 10


async def test_without_keys_all_places_can_be_taken() -> None:
    door = Door(max_running=8, max_queue=4)
    for _ in range(12):
        door.enter()
    with pytest.raises(Overloaded):
        door.enter()


def refusal(enter: Callable[[], object]) -> float:
    with pytest.raises(Overloaded) as caught:
        enter()
    assert caught.value.retry_after is not None
    return caught.value.retry_after


async def test_retry_after_follows_the_measured_rate() -> None:
    for seconds in (0.05, 4.0):
        door = Door(max_running=1, max_queue=1)
        holder, waiting = door.enter(), door.enter()
        for _ in range(20):
            door.clock.now += seconds
            holder.release()
            holder, waiting = waiting, door.enter()
        # One waits, and the newcomer comes after it: two ends from now.
        assert refusal(door.enter) == pytest.approx(2 * seconds, rel=0.05)


async def test_those_sent_away_are_told_different_times() -> None:
    door = Door(max_running=1, max_queue=1)
    holder, waiting = door.enter(), door.enter()
    for _ in range(20):
        door.clock.now += 4
        holder.release()
        holder, waiting = waiting, door.enter()
    times = [refusal(door.enter) for _ in range(30)]
    assert times[:3] == pytest.approx([8, 12, 16], rel=0.05)
    assert max(times) == 60, "no SDK waits longer"
    door.clock.now += 60
    assert refusal(door.enter) < 13, "promises of the past bind nobody"


async def test_idle_time_says_nothing_about_the_rate() -> None:
    door = Door(max_running=1, max_queue=0)
    for _ in range(20):
        holder = door.enter()
        door.clock.now += 2
        holder.release()
        door.clock.now += 1000
    door.enter()
    assert refusal(door.enter) == pytest.approx(2, rel=0.05)


async def test_half_of_an_even_part_of_the_queue_is_kept_for_whoever_has_requests_here() -> None:
    door = Door(max_running=2, max_queue=16)
    people, flood = caller("people"), caller("flood")
    door.enter(people)
    told(door, flood)
    assert door.admission.waiting == 16 - 4
    told(door, people)
    assert door.admission.waiting == 16
