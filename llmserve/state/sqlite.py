"""Keys and usage in one SQLite file, for the servers and commands of one machine."""

from __future__ import annotations

import os
import shutil
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from llmserve.errors import ConfigError, Unavailable
from llmserve.state.protocol import UNREACHABLE
from llmserve.state.sql import CREATE_META, SqlStore, migrate

_BUSY_SECONDS = 5.0
_CLOSED = -1
_MAGIC = b"SQLite format 3\0"  # https://www.sqlite.org/fileformat.html#magic_header_string
_LOST = (
    "The file with keys and usage was {}. Nothing is read from it or written to it any more; "
    "restart the server."
)


class SqliteStore(SqlStore):
    """The file is made when it is missing, readable by its owner only, as is its folder.

    ``min_free_bytes``: free disk space below which ``check`` fails. Raises
    ``ConfigError`` when the file cannot be used, ``Unavailable`` when it is locked.

    SQLite goes on writing to a file that was deleted or replaced, and that nobody sees any
    more. We look before each transaction; once the file is lost, the store is of no use
    until the server is started again.
    """

    def __init__(self, path: Path, *, min_free_bytes: int = 0) -> None:
        self._path = path
        self._min_free_bytes = min_free_bytes
        self._lock = threading.Lock()
        self._lost: str | None = None
        self._sql = _Statements(_open(path))
        # Held as long as the connection: a process that closes any descriptor of a file
        # gives up all its locks on it, SQLite's too (sqlite.org/howtocorrupt.html, 2.2).
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def check(self) -> None:
        """Raises ``Unavailable`` also when the disk is nearly full."""
        try:
            free = shutil.disk_usage(self._path).free
        except FileNotFoundError:
            free = self._min_free_bytes  # The transaction below says it better.
        except OSError as error:
            raise Unavailable(UNREACHABLE) from error
        if free < self._min_free_bytes:
            raise Unavailable(
                f"The disk with keys and usage has {free} bytes left, less than "
                f"{self._min_free_bytes} (state.min_free_bytes)."
            )
        super().check()

    def close(self) -> None:
        with self._lock:
            self._sql.connection.close()
            if self._file != _CLOSED:
                os.close(self._file)
                self._file = _CLOSED

    @contextmanager
    def _transaction(self, *, write: bool) -> Iterator[_Statements]:
        try:
            with self._lock:
                self._look()
                with _block(self._sql, write=write):
                    yield self._sql
        except (sqlite3.Error, OSError) as error:
            raise Unavailable(UNREACHABLE) from error

    def _look(self) -> None:
        """Raises ``Unavailable`` when the file is not the one that was opened any more."""
        if self._file == _CLOSED:
            raise Unavailable("The store of keys and usage is closed.")
        if self._lost is None:
            if not _same_file(self._file, self._path):
                self._lost = _LOST.format("moved or deleted")
            elif os.pread(self._file, len(_MAGIC), 0) != _MAGIC:
                self._lost = _LOST.format("overwritten")
        if self._lost is not None:
            raise Unavailable(self._lost)


class _Statements:
    """A connection as a ``Transaction``."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection

    def execute(self, sql: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        return self.connection.execute(sql, values)

    def execute_many(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        self.connection.executemany(sql, rows)


@contextmanager
def _block(sql: _Statements, *, write: bool) -> Iterator[None]:
    """A transaction. One that will write says so at once: turning a reader into a writer
    half-way fails without waiting when another process writes."""
    sql.execute("BEGIN IMMEDIATE" if write else "BEGIN")
    try:
        yield
        sql.execute("COMMIT")
    except BaseException:
        # Some errors (a full disk) have ended the transaction already.
        with suppress(sqlite3.Error):
            sql.execute("ROLLBACK")
        raise


def _open(path: Path) -> sqlite3.Connection:
    connection = None
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # SQLite gives its -wal and -shm files the mode of the file itself.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        connection = sqlite3.connect(
            path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        _prepare(connection)
    except (OSError, sqlite3.Error, ConfigError) as error:
        if connection is not None:
            connection.close()
        raise _cannot_open(path, error) from error
    return connection


def _prepare(connection: sqlite3.Connection) -> None:
    sql = _Statements(connection)
    mode = sql.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise ConfigError(
            "state.url: this file system does not let SQLite use its write-ahead log; put the "
            "file on a local disk."
        )
    # NORMAL would survive kill -9: what was written is the system's then. It would not
    # survive a power cut, which could bring a revoked key back to life. FULL costs one
    # fsync for each commit, and there are about two of them a second, off the event loop.
    sql.execute("PRAGMA synchronous = FULL")
    with _block(sql, write=True):
        sql.execute(CREATE_META)
        migrate(sql)


def _cannot_open(path: Path, error: Exception) -> ConfigError | Unavailable:
    if isinstance(error, ConfigError):
        return error
    if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
        return Unavailable(f"The file with keys and usage, {path}, is locked by another program.")
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return ConfigError(f"state.url: {path} cannot hold keys and usage: {reason}.")


def _same_file(descriptor: int, path: Path) -> bool:
    """Nobody gets the same inode number while we hold the descriptor."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
