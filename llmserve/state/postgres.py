"""Keys and usage in PostgreSQL, shared by several replicas. Needs the extra ``postgres``."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

from llmserve.errors import ConfigError, Unavailable
from llmserve.state.protocol import UNREACHABLE
from llmserve.state.sql import CREATE_META, SqlStore, migrate
from llmserve.state.windows_sql import WINDOW_MIGRATIONS

if TYPE_CHECKING:
    import psycopg

_MIGRATION_LOCK = 0x6C6C6D73  # "llms"
_CALL_SECONDS = 4.0
_CLOSE_SECONDS = 1.0
_PAUSE_SECONDS = 1.0
# Before we give up ourselves, which costs the connection.
_STATEMENT_TIMEOUT = "SET statement_timeout = '3s'"
_DEFAULTS = {
    "application_name": "llmserve",
    "connect_timeout": "3",
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

    A server may stop answering without closing anything. A call therefore waits four
    seconds for its turn and four for its answer, or three for a new connection; when nobody
    answered, those who wait for their turn fail with it, and so does every call of the
    next second.

    Raises ``ConfigError`` when psycopg is missing, the URL is wrong or the account is
    refused, ``Unavailable`` when the server cannot be reached; these two, for the operator
    who starts it, say which server.
    """

    def __init__(self, url: str) -> None:
        self._conninfo = connection_info(url)
        self._lock = threading.Lock()
        self._connection: psycopg.Connection[tuple[Any, ...]] | None = None
        self._line: socket.socket | None = None
        self._paused_until = 0.0
        self._closed = False
        import psycopg

        try:
            with self._work(write=True) as sql:
                # Two that start together must not both make the tables.
                sql.execute("SELECT pg_advisory_xact_lock(?)", (_MIGRATION_LOCK,))
                sql.execute(CREATE_META)
                migrate(sql, WINDOW_MIGRATIONS)
        except psycopg.Error as error:
            raise explained(error) from error

    def close(self) -> None:
        self._closed = True
        if self._lock.acquire(timeout=_CLOSE_SECONDS):
            try:
                self._disconnect()
            finally:
                self._lock.release()
        elif (line := self._line) is not None:
            _cut(line)  # Whoever is at work fails, and disconnects.

    @contextmanager
    def _transaction(self, *, write: bool) -> Iterator[_Statements]:
        import psycopg

        try:
            with self._work(write=write) as sql:
                yield sql
        except psycopg.Error as error:
            raise Unavailable(UNREACHABLE) from error

    @contextmanager
    def _work(self, *, write: bool) -> Iterator[_Statements]:
        """A transaction that lets the driver's errors out."""
        import psycopg

        if not self._lock.acquire(timeout=_CALL_SECONDS):
            raise Unavailable(UNREACHABLE) from TimeoutError("other calls are still waiting")
        try:
            with (
                self._answering(self._connected()) as connection,
                connection.transaction() if write else nullcontext(),
            ):
                yield _Statements(connection)
        except psycopg.errors.ConnectionTimeout:
            self._paused_until = time.monotonic() + _PAUSE_SECONDS
            raise
        finally:
            if self._closed:
                self._disconnect()
            self._lock.release()

    def _connected(self) -> psycopg.Connection[tuple[Any, ...]]:
        import psycopg

        if self._closed:
            raise Unavailable("The store of keys and usage is closed.")
        if time.monotonic() < self._paused_until:
            raise Unavailable(UNREACHABLE) from TimeoutError("the server does not answer")
        if self._connection is None or self._connection.closed:
            connection = psycopg.connect(self._conninfo, autocommit=True)
            with self._answering(connection):
                connection.execute(_STATEMENT_TIMEOUT)
            self._connection = connection
        return self._connection

    @contextmanager
    def _answering(
        self, connection: psycopg.Connection[tuple[Any, ...]]
    ) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
        """Raises ``ConnectionTimeout`` when the block takes longer than a call may. libpq
        waits for an answer for ever, and TCP's own limits do not help while the other end
        acknowledges: so we end the connection under it."""
        from psycopg.errors import ConnectionTimeout, OperationalError

        given_up = threading.Event()

        def give_up() -> None:
            given_up.set()
            _cut(line)

        # A descriptor of our own: the driver's may be closed and belong to something else.
        with socket.socket(fileno=os.dup(connection.fileno())) as line:
            timer = threading.Timer(_CALL_SECONDS, give_up)
            timer.daemon = True
            timer.start()
            self._line = line
            try:
                yield connection
            except OperationalError as error:
                if given_up.is_set():
                    raise ConnectionTimeout(f"no answer within {_CALL_SECONDS:g} s") from error
                raise
            finally:
                self._line = None
                timer.cancel()
                timer.join()
                if given_up.is_set():
                    connection.close()

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()


def _cut(line: socket.socket) -> None:
    """End the connection, also for a thread that waits on it."""
    with suppress(OSError):
        line.shutdown(socket.SHUT_RDWR)


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
    return Unavailable(f"The state store cannot be reached: {text}.")


def _dialect(sql: str) -> bytes:
    """The statement with psycopg's placeholders."""
    return sql.replace("?", "%s").encode()
