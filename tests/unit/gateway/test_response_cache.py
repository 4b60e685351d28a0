"""What is kept, for whom, for how long, and who makes it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from llmserve.gateway.cache import Cache, Kept, cache_key
from llmserve.settings import CacheSettings

pytestmark = pytest.mark.anyio

GREEDY: dict[str, Any] = {"temperature": 0, "messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def answer(text: str) -> Kept[Any]:
    return Kept(({"text": text},), "id", 1, 1)


async def ask(cache: Cache, key: bytes, made: Kept[Any] | None = None) -> Kept[Any] | None:
    """What is kept; otherwise ``made`` is kept from now on."""
    async with cache.flight(key) as flight:
        if flight.kept is None and made is not None:
            flight.keep(made)
        return flight.kept


@pytest.mark.parametrize(
    "body", [{}, {"temperature": 0.5}, {"temperature": None}, {"seed": None}, {"top_k": 1}]
)
async def test_what_may_differ_has_no_key(body: dict[str, Any]) -> None:
    assert cache_key((), body) is None


async def test_the_key_is_all_that_changes_the_answer() -> None:
    key = cache_key(("chat", "m"), GREEDY)
    assert key == cache_key(("chat", "m"), dict(reversed(GREEDY.items())))
    assert key == cache_key(("chat", "m"), GREEDY | {"user": "someone"})
    others = (
        cache_key(("chat", "n"), GREEDY),
        cache_key(("chat", "m"), GREEDY | {"max_tokens": 5}),
        cache_key(("chat", "m"), GREEDY | {"stream": True}),
        cache_key(("chat", "m"), GREEDY | {"seed": 1}),
        cache_key(("chat", "m"), GREEDY | {"messages": [{"role": "user", "content": "hi"}]}),
    )
    assert len({key, *others}) == len(others) + 1


async def test_kept_answers_are_given_again() -> None:
    cache = Cache(CacheSettings())
    assert await ask(cache, b"k", answer("a")) is None
    assert await ask(cache, b"k") == answer("a")
    assert (cache.hits, cache.misses) == (1, 1)


async def test_answers_grow_old() -> None:
    now = [0.0]
    cache = Cache(CacheSettings(max_age_s=10), lambda: now[0])
    await ask(cache, b"k", answer("a"))
    now[0] = 9.0
    assert await ask(cache, b"k") is not None
    now[0] = 10.5
    assert await ask(cache, b"k") is None
    assert cache.bytes == 0


async def test_memory_is_bounded_and_the_least_used_goes_first() -> None:
    cache = Cache(CacheSettings(max_bytes=2000))
    for number in range(20):
        await ask(cache, b"%d" % number, answer("x" * 180))
        await ask(cache, b"0")
        assert cache.bytes <= 2000
    assert await ask(cache, b"0") is not None
    assert await ask(cache, b"1") is None


async def test_what_is_too_large_is_not_kept() -> None:
    cache = Cache(CacheSettings(max_bytes=2000))
    await ask(cache, b"k", answer("x" * 1000))
    assert await ask(cache, b"k") is None


async def test_identical_requests_in_flight_are_made_once() -> None:
    cache, made = Cache(CacheSettings()), []

    async def request() -> Kept[Any]:
        async with cache.flight(b"k") as flight:
            if flight.kept is not None:
                return flight.kept
            made.append(1)
            await asyncio.sleep(0.01)
            flight.keep(answer("once"))
            return answer("once")

    answers = await asyncio.gather(*(request() for _ in range(20)))
    assert set(map(str, answers)) == {str(answer("once"))}
    assert len(made) == 1


async def test_the_next_in_line_takes_over_from_one_that_fails() -> None:
    cache, order = Cache(CacheSettings()), []

    async def request(number: int) -> str:
        async with cache.flight(b"k") as flight:
            if flight.kept is not None:
                return "hit"
            order.append(number)
            await asyncio.sleep(0.01)
            if number == 0:
                raise ValueError("the first one fails")
            flight.keep(answer("a"))
            return "made"

    results = await asyncio.gather(*map(request, range(4)), return_exceptions=True)
    assert isinstance(results[0], ValueError)
    assert results[1:] == ["made", "hit", "hit"]
    assert order == [0, 1]


async def test_one_that_gives_up_waiting_disturbs_nobody() -> None:
    cache = Cache(CacheSettings())
    entered = asyncio.Event()

    async def maker() -> None:
        async with cache.flight(b"k") as flight:
            entered.set()
            await asyncio.sleep(0.03)
            flight.keep(answer("a"))

    making = asyncio.create_task(maker())
    await entered.wait()
    impatient = asyncio.create_task(ask(cache, b"k"))
    patient = asyncio.create_task(ask(cache, b"k"))
    await asyncio.sleep(0)
    impatient.cancel()
    assert await patient == answer("a")
    await making
