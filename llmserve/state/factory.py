"""From the settings to a store and to rate windows."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import unquote, urlsplit

from llmserve.errors import ConfigError
from llmserve.settings import StateSettings
from llmserve.state.protocol import Store
from llmserve.state.windows import Windows
from llmserve.state.windows_memory import MemoryWindows

_ALLOWED = "it must be sqlite:///ABSOLUTE/PATH or postgresql://USER:PASSWORD@HOST/DATABASE"


def open_store(settings: StateSettings, default_path: Path) -> Store:
    """The store that ``state.url`` names, or the file ``default_path``. Blocks.

    Raises ``ConfigError`` when the URL, the file or the account is wrong, and
    ``Unavailable`` when the file is locked or the server cannot be reached. No message
    shows the password.
    """
    url = _postgres_url(settings)
    if url is not None:
        from llmserve.state.postgres import PostgresStore

        return PostgresStore(url)
    from llmserve.state.sqlite import SqliteStore

    path = _sqlite_path(settings) or default_path
    return SqliteStore(path, min_free_bytes=settings.min_free_bytes)


def open_windows(settings: StateSettings, store: Store) -> Windows:
    """Rate windows as far as the state reaches: shared over PostgreSQL, or those of this
    process. Blocks; the windows themselves are then opened with ``Windows.open``."""
    url = _postgres_url(settings)
    if url is not None:
        from llmserve.state.windows_postgres import PostgresWindows

        return PostgresWindows(url)
    today = datetime.now(UTC).date().isoformat()
    return MemoryWindows(spent=store.tokens_on(today), day=today)


def _postgres_url(settings: StateSettings) -> str | None:
    url = "" if settings.url is None else settings.url.get_secret_value()
    return url if url.startswith(("postgresql://", "postgres://")) else None


def _sqlite_path(settings: StateSettings) -> Path | None:
    """The path is absolute with three slashes and with four: a relative one would mean
    another file for each folder that a command is started in."""
    if settings.url is None:
        return None
    url = settings.url.get_secret_value()
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ConfigError(f"state.url: this is not a URL; {_ALLOWED}.") from None
    if parts.scheme != "sqlite":
        raise ConfigError(f"state.url: {parts.scheme[:20]!r} is not known; {_ALLOWED}.")
    path = "/" + unquote(parts.path).lstrip("/")
    if parts.netloc or path == "/" or parts.query or parts.fragment:
        raise ConfigError(f"state.url: {url!r} is not a path; {_ALLOWED}.")
    return Path(path)
