"""Keys and usage in SQL that SQLite and PostgreSQL both understand.

The subclasses bring connections and transactions. Placeholders are written ``?``. Names
begin with ``llmserve_``, so that a database can be shared with others.
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import astuple
from typing import Any, Protocol

from llmserve.errors import ConfigError, InvalidRequest
from llmserve.state.protocol import ApiKey, BatchId, Credential, UsageRow
from llmserve.types import Limits, Outcome, Scope

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE llmserve_keys (
            id TEXT PRIMARY KEY,
            name TEXT NOT NULL,
            prefix TEXT NOT NULL,
            created_at DOUBLE PRECISION NOT NULL,
            expires_at DOUBLE PRECISION,
            revoked_at DOUBLE PRECISION,
            scopes TEXT NOT NULL,
            models TEXT,
            requests_per_minute BIGINT,
            tokens_per_minute BIGINT,
            concurrency BIGINT,
            tokens_per_day BIGINT,
            weight DOUBLE PRECISION NOT NULL)""",
        # Revoked keys keep their name, so that old usage stays readable.
        """CREATE UNIQUE INDEX llmserve_keys_by_name ON llmserve_keys (name)
            WHERE revoked_at IS NULL""",
        """CREATE TABLE llmserve_digests (
            digest TEXT PRIMARY KEY,
            key_id TEXT NOT NULL REFERENCES llmserve_keys (id),
            valid_until DOUBLE PRECISION)""",
        """CREATE TABLE llmserve_usage (
            day TEXT NOT NULL,
            key_id TEXT NOT NULL,
            model TEXT NOT NULL,
            outcome TEXT NOT NULL,
            requests BIGINT NOT NULL,
            prompt_tokens BIGINT NOT NULL,
            cached_tokens BIGINT NOT NULL,
            completion_tokens BIGINT NOT NULL,
            PRIMARY KEY (day, key_id, model, outcome))""",
        """CREATE TABLE llmserve_writers (
            id TEXT PRIMARY KEY,
            batch BIGINT NOT NULL,
            seen_at DOUBLE PRECISION NOT NULL)""",
        "INSERT INTO llmserve_meta (name, value) VALUES ('revision', 0), ('checks', 0)",
    ),
    (),
)
"""What turns each version of the schema into the next; the first makes version 1."""

CREATE_META = """CREATE TABLE IF NOT EXISTS llmserve_meta (
    name TEXT PRIMARY KEY, value BIGINT NOT NULL)"""

_KEY_COLUMNS = """k.id, k.name, k.prefix, k.created_at, k.expires_at, k.revoked_at, k.scopes,
    k.models, k.requests_per_minute, k.tokens_per_minute, k.concurrency, k.tokens_per_day,
    k.weight"""
_WRITER_KEPT_SECONDS = 30 * 86_400


class Rows(Protocol):
    """The result of a statement, as both drivers have it."""

    @property
    def rowcount(self) -> int: ...

    def fetchone(self) -> Any: ...

    def fetchall(self) -> list[Any]: ...


class Transaction(Protocol):
    """An open transaction: committed when its block ends, undone when it raises."""

    def execute(self, sql: str, values: Sequence[Any] = ()) -> Rows: ...

    def execute_many(self, sql: str, rows: Iterable[Sequence[Any]]) -> None: ...


class SqlStore(ABC):
    """A ``Store`` over one of the two databases."""

    @abstractmethod
    def _transaction(self, *, write: bool) -> AbstractContextManager[Transaction]:
        """Errors of the driver come out as ``Unavailable``."""

    def revision(self) -> int:
        with self._transaction(write=False) as sql:
            row = sql.execute("SELECT value FROM llmserve_meta WHERE name = 'revision'").fetchone()
        return int(row[0])

    def keys(self) -> list[ApiKey]:
        with self._transaction(write=False) as sql:
            rows = sql.execute(
                f"SELECT {_KEY_COLUMNS} FROM llmserve_keys k ORDER BY k.created_at, k.id"  # noqa: S608
            ).fetchall()
        return [_key(row) for row in rows]

    def credentials(self) -> list[Credential]:
        with self._transaction(write=False) as sql:
            rows = sql.execute(
                f"SELECT d.digest, d.valid_until, {_KEY_COLUMNS} FROM llmserve_digests d "  # noqa: S608
                "JOIN llmserve_keys k ON k.id = d.key_id"
            ).fetchall()
        return [Credential(bytes.fromhex(row[0]), row[1], _key(row[2:])) for row in rows]

    def create_key(self, key: ApiKey, digest: bytes) -> None:
        with self._transaction(write=True) as sql:
            made = sql.execute(
                f"INSERT INTO llmserve_keys VALUES ({', '.join('?' * 13)}) "  # noqa: S608
                "ON CONFLICT DO NOTHING",
                _row(key),
            )
            if made.rowcount == 0:
                raise InvalidRequest(f"There is a key named {key.name!r} already.", param="name")
            _add_digest(sql, key.id, digest)
            _changed(sql)

    def revoke_key(self, key_id: str, when: float) -> bool:
        with self._transaction(write=True) as sql:
            done = sql.execute(
                "UPDATE llmserve_keys SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL",
                (when, key_id),
            )
            if done.rowcount:
                _changed(sql)
            return done.rowcount > 0

    def rotate_key(
        self, key_id: str, digest: bytes, prefix: str, old_valid_until: float | None
    ) -> bool:
        with self._transaction(write=True) as sql:
            done = sql.execute(
                "UPDATE llmserve_keys SET prefix = ? WHERE id = ? AND revoked_at IS NULL",
                (prefix, key_id),
            )
            if done.rowcount == 0:
                return False
            if old_valid_until is None:
                sql.execute("DELETE FROM llmserve_digests WHERE key_id = ?", (key_id,))
            else:
                sql.execute(
                    "UPDATE llmserve_digests SET valid_until = ? "
                    "WHERE key_id = ? AND (valid_until IS NULL OR valid_until > ?)",
                    (old_valid_until, key_id, old_valid_until),
                )
            _add_digest(sql, key_id, digest)
            _changed(sql)
            return True

    def add_usage(self, rows: Sequence[UsageRow], batch: BatchId | None = None) -> None:
        with self._transaction(write=True) as sql:
            if batch is not None and not _is_new(sql, batch):
                return
            # In one order everywhere: replicas that lock the same rows must not deadlock.
            sql.execute_many(_ADD_USAGE, sorted(_usage_row(row) for row in rows))

    def usage(self, first_day: str, last_day: str, key_id: str | None) -> list[UsageRow]:
        if key_id is not None and not key_id.isprintable():
            return []  # Neither driver takes NUL or half a surrogate pair; no key has them.
        of_key, values = ("", ()) if key_id is None else (" AND key_id = ?", (key_id,))
        with self._transaction(write=False) as sql:
            rows = sql.execute(
                "SELECT day, key_id, model, outcome, requests, prompt_tokens, cached_tokens, "  # noqa: S608
                f"completion_tokens FROM llmserve_usage WHERE day >= ? AND day <= ?{of_key}",
                (first_day, last_day, *values),
            ).fetchall()
        # Not ordered by the database: PostgreSQL sorts texts by its own locale.
        return [
            UsageRow(day, key, model, Outcome(outcome), *counts)
            for day, key, model, outcome, *counts in sorted(rows)
        ]

    def tokens_on(self, day: str) -> Mapping[str, int]:
        with self._transaction(write=False) as sql:
            rows = sql.execute(
                "SELECT key_id, CAST(SUM(prompt_tokens + completion_tokens) AS BIGINT) "
                "FROM llmserve_usage WHERE day = ? GROUP BY key_id",
                (day,),
            ).fetchall()
        return dict(rows)

    def check(self) -> None:
        with self._transaction(write=True) as sql:
            sql.execute("UPDATE llmserve_meta SET value = value + 1 WHERE name = 'checks'")

    @abstractmethod
    def close(self) -> None:
        """Idempotent. Afterwards every other method raises ``Unavailable``."""


def migrate(sql: Transaction, further: Sequence[Sequence[str]] = ()) -> None:
    """Bring the schema to the newest version, in the caller's transaction. ``further``
    are statements of one database alone, by version. Raises ``ConfigError`` when a newer
    llmserve has been here."""
    row = sql.execute("SELECT value FROM llmserve_meta WHERE name = 'schema'").fetchone()
    version = 0 if row is None else int(row[0])
    if version > len(MIGRATIONS):
        raise ConfigError(
            f"state.url: the state was written by a newer llmserve (schema {version}; this one "
            f"knows up to {len(MIGRATIONS)}). Update llmserve, or give another place."
        )
    for number in range(version, len(MIGRATIONS)):
        for statement in (*MIGRATIONS[number], *(further[number] if further else ())):
            sql.execute(statement)
    if version < len(MIGRATIONS):
        sql.execute(
            "INSERT INTO llmserve_meta (name, value) VALUES ('schema', ?) "
            "ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            (len(MIGRATIONS),),
        )


_ADD_USAGE = """INSERT INTO llmserve_usage VALUES (?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (day, key_id, model, outcome) DO UPDATE SET
    requests = llmserve_usage.requests + excluded.requests,
    prompt_tokens = llmserve_usage.prompt_tokens + excluded.prompt_tokens,
    cached_tokens = llmserve_usage.cached_tokens + excluded.cached_tokens,
    completion_tokens = llmserve_usage.completion_tokens + excluded.completion_tokens"""


def _is_new(sql: Transaction, batch: BatchId) -> bool:
    """Note the batch, unless it or a later one of its writer has been noted."""
    now = time.time()
    noted = sql.execute(
        "INSERT INTO llmserve_writers VALUES (?, ?, ?) ON CONFLICT (id) DO UPDATE "
        "SET batch = excluded.batch, seen_at = excluded.seen_at "
        "WHERE llmserve_writers.batch < excluded.batch",
        (batch.writer, batch.number, now),
    )
    if batch.number == 1:
        oldest = now - _WRITER_KEPT_SECONDS
        sql.execute("DELETE FROM llmserve_writers WHERE seen_at < ?", (oldest,))
    return noted.rowcount > 0


def _add_digest(sql: Transaction, key_id: str, digest: bytes) -> None:
    sql.execute("INSERT INTO llmserve_digests VALUES (?, ?, NULL)", (digest.hex(), key_id))


def _changed(sql: Transaction) -> None:
    sql.execute("UPDATE llmserve_meta SET value = value + 1 WHERE name = 'revision'")


def _usage_row(row: UsageRow) -> tuple[Any, ...]:
    return (
        *(row.day, row.key_id, row.model, row.outcome.value),
        *(row.requests, row.prompt_tokens, row.cached_tokens, row.completion_tokens),
    )


def _row(key: ApiKey) -> tuple[Any, ...]:
    return (
        *(key.id, key.name, key.prefix, key.created_at, key.expires_at, key.revoked_at),
        " ".join(sorted(key.scopes)),
        None if key.models is None else json.dumps(sorted(key.models)),
        *astuple(key.limits),
        key.weight,
    )


def _key(row: Sequence[Any]) -> ApiKey:
    key_id, name, prefix, created, expires, revoked, scopes, models, *limits, weight = row
    return ApiKey(
        *(key_id, name, prefix, created, expires, revoked),
        frozenset(scope for scope in Scope if scope in scopes.split()),
        None if models is None else frozenset(json.loads(models)),
        Limits(*limits),
        weight,
    )
