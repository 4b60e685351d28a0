"""Who is calling."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import pytest
from state_support import Opener, made_key, sha, until

from llmserve.errors import Unauthenticated, Unavailable
from llmserve.state import Authenticator, Store
from llmserve.types import ANONYMOUS, Limits, Scope

pytestmark = pytest.mark.anyio


def refusal(gate: Authenticator, *headers: str | None) -> str:
    given = (*headers, None)[:2]
    with pytest.raises(Unauthenticated) as caught:
        gate.authenticate(*given)
    return caught.value.message


@asynccontextmanager
async def following(gate: Authenticator) -> AsyncIterator[None]:
    task = asyncio.create_task(gate.keep_fresh())
    yield
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_without_keys_everybody_may(store: Store) -> None:
    gate = Authenticator(store)
    assert not gate.required
    assert gate.authenticate(None, None) is ANONYMOUS
    assert gate.authenticate("Bearer sk-whatever", "other") is ANONYMOUS


async def test_static_keys(store: Store) -> None:
    gate = Authenticator(store, ["one", "two"])
    caller = gate.authenticate("bearer  two ", None)
    assert (caller.id, caller.name, caller.scopes) == ("static-2", "static-2", frozenset(Scope))
    assert caller.limits == Limits()
    assert gate.authenticate(None, "one").id == "static-1"
    assert gate.authenticate(None, None, "one").id == "static-1"
    for headers in ((None, None), ("Bearer", ""), ("Basic one", None), ("one", None), ("", "  ")):
        assert "is required" in refusal(gate, *headers)
    assert "not valid" in refusal(gate, "Bearer x")
    assert "not valid" in refusal(gate, None, "ké\udcff")


async def test_an_empty_header_does_not_hide_a_good_key(store: Store) -> None:
    gate = Authenticator(store, ["one", "two"])
    for empty in ("", "Bearer", "Bearer ", "Basic dXNlcg=="):
        assert gate.authenticate(empty, "one").id == "static-1"
    assert gate.authenticate("Bearer one", "").id == "static-1"
    assert gate.authenticate("Bearer one", "one", "one").id == "static-1"
    assert "two different" in refusal(gate, "Bearer one", "two")


async def test_a_key_of_the_store(store: Store) -> None:
    key, secret = made_key(limits=Limits(concurrency=3))
    store.create_key(key, sha(secret))
    gate = Authenticator(store)
    assert gate.required
    assert gate.authenticate(f"Bearer {secret}", None) == key.caller
    assert "not valid" in refusal(gate, f"Bearer {secret[:-1]}")


async def test_expired_and_revoked_keys_say_so_and_do_not_open_the_server(store: Store) -> None:
    now = 1000.0
    key, secret = made_key("a")
    other, other_secret = made_key("b")
    store.create_key(replace(key, expires_at=2000.0), sha(secret))
    store.create_key(other, sha(other_secret))
    gate = Authenticator(store, clock=lambda: now)
    assert gate.authenticate(None, secret).name == "a"
    now = 2000.0
    assert refusal(gate, None, secret) == "The API key has expired."
    store.revoke_key(other.id, 1.0)
    gate.refresh()
    assert refusal(gate, None, other_secret) == "The API key has been revoked."
    assert gate.required
    assert Authenticator(store).required
    assert "is required" in refusal(gate, None)


async def test_rotation_has_a_grace_period(store: Store) -> None:
    now = 1000.0
    key, old = made_key()
    store.create_key(key, sha(old))
    gate = Authenticator(store, clock=lambda: now)
    store.rotate_key(key.id, sha("new"), "p", 1500.0)
    gate.refresh()
    assert gate.authenticate(None, old).id == gate.authenticate(None, "new").id == key.id
    now = 1500.0
    assert "expired" in refusal(gate, None, old)
    assert gate.authenticate(None, "new").id == key.id


async def test_another_process_revokes_a_key(another_store: Opener) -> None:
    gate = Authenticator(another_store())
    operator = another_store()
    key, secret = made_key()
    async with following(gate):
        operator.create_key(key, sha(secret))
        assert await until(lambda: gate.required) < 2
        assert gate.authenticate(None, secret) == key.caller
        operator.revoke_key(key.id, time.time())
        started = time.monotonic()
        while True:
            try:
                gate.authenticate(None, secret)
            except Unauthenticated:
                break
            assert time.monotonic() - started < 2
            await asyncio.sleep(0.01)


class Failing:
    """A store that can be taken away."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.away = False
        self.asked = 0

    def revision(self) -> int:
        self.asked += 1
        if self.away:
            raise Unavailable("away")
        return self._store.revision()

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)


async def test_the_last_keys_stay_in_force_while_the_store_is_away(
    store: Store, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmserve.state.authenticator.REFRESH_SECONDS", 0.01)
    caplog.set_level(logging.WARNING)
    key, secret = made_key()
    store.create_key(key, sha(secret))
    failing = Failing(store)
    gate = Authenticator(failing)  # type: ignore[arg-type]
    async with following(gate):
        failing.away = True
        asked = failing.asked
        await until(lambda: failing.asked > asked + 5)
        assert gate.authenticate(None, secret) == key.caller
        assert [record.message for record in caplog.records] == [
            "keys cannot be read, the last known stay valid: away"
        ]
        failing.away = False
        await until(lambda: len(caplog.records) > 1)
    assert caplog.records[1].message == "keys are read again"
    assert len(caplog.records) == 2


async def test_a_store_that_is_away_at_the_start_lets_nobody_in(store: Store) -> None:
    store.close()
    with pytest.raises(Unavailable):
        Authenticator(store)
