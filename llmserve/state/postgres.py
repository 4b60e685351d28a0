"""Keys and usage in PostgreSQL, shared by several replicas. Needs the extra ``postgres``."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from llmserve.errors import ConfigError, Unavailable
from llmserve.state.sql import CREATE_META, SqlStore, migrate
from llmserve.state.windows_sql import WINDOW_MIGRATIONS

if TYPE_CHECKING:
    import psycopg

_MIGRATION_LOCK = 0x6C6C6D73  # "llms"
_DEFAULTS = {
    "application_name": "llmserve",
    "connect_timeout": "5",
    # A server that has vanished must not hold a thread for the quarter of an hour that
    # TCP takes by itself. Milliseconds, and seconds.
    "tcp_user_timeout": "5000",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
}
# What PostgreSQL says when trying again later is no use.
_REFUSALS = ("authentication failed", "does not exist", "no pg_hba.conf entry", "no password")


class PostgresStore(SqlStore):
    """One connection, used by one thread at a time and opened again after it broke.

    Raises ``ConfigError`` when psycopg is missing, the URL is wrong or the account is
    refused, ``Unavailable`` when the server cannot be reached.
    """

    def __init__(self, url: str) -> None:
        self._conninfo = connection_info(url)
        self._lock = threading.Lock()
        self._connection: psycopg.Connection[tuple[Any, ...]] | None = None
        self._closed = False
        with self._transaction(write=True) as sql:
            # Two that start together must not both make the tables.
            sql.execute("SELECT pg_advisory_xact_lock(?)", (_MIGRATION_LOCK,))
            sql.execute(CREATE_META)
            migrate(sql, WINDOW_MIGRATIONS)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            if self._connection is not None:
                self._connection.close()

    @contextmanager
    def _transaction(self, *, write: bool) -> Iterator[_Statements]:
        import psycopg

        try:
            with self._lock:
                connection = self._connected()
                with connection.transaction() if write else nullcontext():
                    yield _Statements(connection)
        except psycopg.Error as error:
            raise explained(error) from error

    def _connected(self) -> psycopg.Connection[tuple[Any, ...]]:
        import psycopg

        if self._closed:
            raise Unavailable("The store of keys and usage is closed.")
        if self._connection is None or self._connection.closed:
            self._connection = psycopg.connect(self._conninfo, autocommit=True)
            self._connection.execute("SET statement_timeout = '10s'")
        return self._connection


class _Statements:
    """A connection as a ``Transaction``."""

    def __init__(self, connection: psycopg.Connection[tuple[Any, ...]]) -> None:
        self._connection = connection

    def execute(self, sql: str, values: Sequence[Any] = ()) -> psycopg.Cursor[tuple[Any, ...]]:
        return self._connection.execute(_dialect(sql), values or None)

    def execute_many(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        with self._connection.cursor() as cursor:
            cursor.executemany(_dialect(sql), rows)


def connection_info(url: str) -> str:
    """The URL with our time limits, where it does not set its own. Raises
    ``ConfigError``, which never repeats the URL: libpq's own message would."""
    try:
        from psycopg import ProgrammingError
        from psycopg.conninfo import conninfo_to_dict, make_conninfo
    except ImportError:
        raise ConfigError(
            "state.url: PostgreSQL needs the extra 'postgres': pip install 'llmserve[postgres]'."
        ) from None
    wrong = ConfigError(
        "state.url: this is not a PostgreSQL URL; it must be like "
        "postgresql://USER:PASSWORD@HOST:PORT/DATABASE, special characters written as %XX."
    )
    try:
        given = conninfo_to_dict(url)
    except ProgrammingError:
        raise wrong from None
    # An @ in a password that is not written %40 makes the rest of it a part of the host,
    # which later messages would show.
    ports = str(given.get("port", "")).replace(",", "")
    if "@" in str(given.get("host", "")) or not (ports.isdigit() or ports == ""):
        raise wrong
    return make_conninfo("", **(_DEFAULTS | given))


def explained(error: psycopg.Error) -> ConfigError | Unavailable:
    """A driver's error as ours. libpq's texts name host, account and database, never the
    password; only the command line and the log get to see the first kind."""
    text = " ".join(str(error).split()).rstrip(".")
    if error.sqlstate is None and any(refusal in text for refusal in _REFUSALS):
        return ConfigError(f"state.url: PostgreSQL refuses the connection: {text}.")
    return Unavailable(f"Keys and usage cannot be reached: {text}.")


def _dialect(sql: str) -> bytes:
    """The statement with psycopg's placeholders."""
    return sql.replace("?", "%s").encode()
