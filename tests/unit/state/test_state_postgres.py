"""What is special about a server."""

from __future__ import annotations

import builtins
import socket
import threading
from pathlib import Path
from typing import Any

import psycopg
import pytest
from postgres_server import PASSWORD, Database
from state_support import made_key, row, sha

from llmserve.errors import ConfigError, LlmserveError, Unavailable
from llmserve.settings import StateSettings
from llmserve.state import open_store, open_windows
from llmserve.state.postgres import PostgresStore

UNUSED = Path("/dev/null/unused")


def opened(url: str) -> Any:
    return open_store(StateSettings.model_validate({"url": url}), UNUSED)


def message_of(error: BaseException | None) -> str:
    """Everything that a traceback of it would show."""
    texts = []
    while error is not None:
        texts.append(f"{error!r} {error}")
        hidden = error.__suppress_context__
        error = error.__cause__ or (None if hidden else error.__context__)
    return " ".join(texts)


def test_a_wrong_password(database: Database) -> None:
    url = database.server.url(database.name, "hunter2")
    with pytest.raises(ConfigError, match="password authentication failed") as caught:
        opened(url)
    assert "hunter2" not in message_of(caught.value)


def test_a_database_that_does_not_exist(database: Database) -> None:
    with pytest.raises(ConfigError, match="does not exist") as caught:
        opened(database.server.url("nowhere"))
    assert PASSWORD not in message_of(caught.value)


def test_a_server_that_is_not_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1") as caught:
        opened(f"postgresql://u:hunter2@127.0.0.1:{port}/d")
    assert "hunter2" not in message_of(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:hunter2@h:notaport:5/d",
        "postgresql://u:hunter2@h/d?nonsense=hunter2",
        "postgresql://u:hunter2%zz@h/d",
        "postgresql://u:p@hunter2@h/d",
        "mysql://u:hunter2@h/d",
        "http://[hunter2",
    ],
)
def test_a_malformed_url_does_not_repeat_the_password(url: str) -> None:
    with pytest.raises(ConfigError, match=r"state\.url") as caught:
        opened(url)
    assert "hunter2" not in message_of(caught.value)


def test_without_psycopg_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *args: Any, **more: Any) -> Any:
        if name.partition(".")[0] in ("psycopg", "psycopg_pool"):
            raise ImportError(name)
        return real(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ConfigError, match=r"llmserve\[postgres\]"):
        opened("postgresql://h/d")


def test_a_newer_schema_is_refused(database: Database) -> None:
    PostgresStore(database.url).close()
    database.run("UPDATE llmserve_meta SET value = 999 WHERE name = 'schema'")
    with pytest.raises(ConfigError, match="newer llmserve"):
        PostgresStore(database.url)


def test_replicas_that_start_together(database: Database) -> None:
    failures: list[LlmserveError | psycopg.Error] = []

    def start() -> None:
        try:
            PostgresStore(database.url).close()
        except (LlmserveError, psycopg.Error) as error:
            failures.append(error)

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_it_comes_back_after_the_server_was_away(database: Database) -> None:
    store = PostgresStore(database.url)
    key, secret = made_key()
    store.create_key(key, sha(secret))
    database.cut()
    for work in (store.check, store.revision, lambda: store.add_usage([row()])):
        with pytest.raises(Unavailable):
            work()
    database.restore()
    store.check()
    assert store.keys() == [key]
    assert store.usage("2026-05-01", "2026-05-01", None) == []
    store.close()


def test_windows_need_no_connection_to_be_made() -> None:
    settings = StateSettings.model_validate({"url": "postgresql://h/d"})
    assert type(open_windows(settings, store=None)).__name__ == "PostgresWindows"  # type: ignore[arg-type]
