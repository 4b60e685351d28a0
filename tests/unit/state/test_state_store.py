"""What every store does, whatever it is made of."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
from state_support import Opener, made_key, row, sha

from llmserve.errors import InvalidRequest, Unavailable
from llmserve.state import BatchId, Store
from llmserve.types import Limits, Outcome, Scope


def test_a_key_comes_back_as_it_was_made(store: Store, another_store: Opener) -> None:
    plain, secret = made_key("plain")
    full = replace(
        made_key("full")[0],
        created_at=plain.created_at + 1,
        expires_at=2e9,
        scopes=frozenset({Scope.METRICS, Scope.ADMIN}),
        models=frozenset({"a model, with a comma", "b"}),
        limits=Limits(1, 2, 3, 2**40),
        weight=2.5,
    )
    store.create_key(plain, sha(secret))
    store.create_key(full, sha("other"))
    assert another_store().keys() == [plain, full]
    assert {(c.digest, c.valid_until, c.key) for c in another_store().credentials()} == {
        (sha(secret), None, plain),
        (sha("other"), None, full),
    }
    assert full.caller.limits.tokens_per_day == 2**40


def test_the_secret_is_nowhere(store: Store) -> None:
    key, secret = made_key()
    store.create_key(key, sha(secret))
    seen = repr(store.keys()) + repr(store.credentials())
    assert secret not in seen
    assert key.prefix in seen
    assert len(key.prefix) < len(secret) - 30


def test_names_are_unique_among_the_living(store: Store) -> None:
    first, second = made_key("bob")[0], made_key("bob")[0]
    store.create_key(first, sha("1"))
    before = store.revision()
    with pytest.raises(InvalidRequest, match="bob"):
        store.create_key(second, sha("2"))
    assert store.revision() == before
    assert store.revoke_key(first.id, 5.0)
    store.create_key(second, sha("2"))
    living = store.keys()
    assert {key.id for key in living} == {first.id, second.id}


def test_every_change_of_a_key_changes_the_revision(store: Store, another_store: Opener) -> None:
    other = another_store()
    seen = [other.revision()]
    key, _ = made_key()
    store.create_key(key, sha("1"))
    seen.append(other.revision())
    assert store.rotate_key(key.id, sha("2"), "p", None)
    seen.append(other.revision())
    assert store.revoke_key(key.id, 1.0)
    seen.append(other.revision())
    assert len(set(seen)) == len(seen)
    store.add_usage([row()])
    store.check()
    assert not store.revoke_key(key.id, 2.0)
    assert not store.rotate_key(key.id, sha("3"), "p", None)
    assert not store.revoke_key("nobody", 2.0)
    assert other.revision() == seen[-1]
    assert other.keys()[0].revoked_at == 1.0


def test_rotation(store: Store) -> None:
    key, _ = made_key()
    store.create_key(key, sha("1"))
    assert store.rotate_key(key.id, sha("2"), "new-prefix", 100.0)
    assert store.rotate_key(key.id, sha("3"), "new-prefix", 200.0)
    valid = {each.digest: each.valid_until for each in store.credentials()}
    assert valid == {sha("1"): 100.0, sha("2"): 200.0, sha("3"): None}
    assert store.keys()[0].prefix == "new-prefix"
    assert store.rotate_key(key.id, sha("4"), "new-prefix", None)
    assert [each.digest for each in store.credentials()] == [sha("4")]


def test_usage_adds_up(store: Store) -> None:
    failed = replace(row("2026-05-02", "a"), outcome=Outcome.FAILED)
    store.add_usage([row(key_id="b"), row("2026-05-02", "a"), failed])
    store.add_usage([row(key_id="b", count=2)])
    store.add_usage([])
    assert store.usage("2026-05-01", "2026-05-02", None) == [
        row(key_id="b", count=3),
        row("2026-05-02", "a"),
        failed,
    ]
    assert store.usage("2026-05-02", "2026-05-31", None) == [row("2026-05-02", "a"), failed]
    assert store.usage("2026-01-01", "2026-12-31", "b") == [row(key_id="b", count=3)]
    assert store.usage("2026-05-03", "2026-05-31", None) == []
    assert store.tokens_on("2026-05-02") == {"a": 34}
    assert store.tokens_on("2026-05-03") == {}


@pytest.mark.parametrize("key_id", ["a\0", "\0", "\udcff"])
def test_nobody_has_a_key_that_the_database_cannot_store(store: Store, key_id: str) -> None:
    store.add_usage([row(key_id="a")])
    assert store.usage("2026-01-01", "2026-12-31", key_id) == []


def test_a_batch_counts_once(store: Store, another_store: Opener) -> None:
    store.add_usage([row()], BatchId("w", 1))
    another_store().add_usage([row()], BatchId("w", 1))
    store.add_usage([row()], BatchId("w", 2))
    store.add_usage([row()], BatchId("other", 1))
    assert store.usage("2026-05-01", "2026-05-01", None) == [row(count=3)]


def test_concurrent_writers_add_up(another_store: Opener) -> None:
    """Eight threads over two connections, with rows in clashing orders."""
    stores = [another_store(), another_store()]
    failures: list[BaseException] = []

    def write(number: int) -> None:
        rows = [row(key_id=f"k{i}") for i in range(5)]
        try:
            for _ in range(10):
                stores[number % 2].add_usage(rows if number % 3 else rows[::-1])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    expected = [row(key_id=f"k{i}", count=80) for i in range(5)]
    assert stores[0].usage("2026-05-01", "2026-05-01", None) == expected


def test_nothing_is_added_when_a_part_cannot_be(store: Store) -> None:
    too_large = replace(row(key_id="z"), prompt_tokens=2**62)
    store.add_usage([too_large])
    more = replace(row(key_id="y"), requests=5)
    with pytest.raises((Unavailable, OverflowError)):
        store.add_usage([more, replace(too_large, prompt_tokens=2**64)], BatchId("w", 1))
    assert store.usage("2026-05-01", "2026-05-01", None) == [too_large]


def test_a_closed_store_says_so(store: Store) -> None:
    store.check()
    store.close()
    store.close()
    with pytest.raises(Unavailable):
        store.revision()
    with pytest.raises(Unavailable):
        store.check()
