"""What is special about a server."""

from __future__ import annotations

import asyncio
import builtins
import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from postgres_server import PASSWORD, Database
from state_support import made_key, row, sha, until

from llmserve.errors import ConfigError, LlmserveError, Unavailable
from llmserve.settings import StateSettings
from llmserve.state import Authenticator, UsageWriter, open_store, open_windows
from llmserve.state.postgres import PostgresStore
from llmserve.state.protocol import for_log

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


PUBLIC = "The state store cannot be reached."
EXIT = """
import asyncio, signal, sys
from llmserve.state import Authenticator, UsageWriter, postgres
from llmserve.state.windows_postgres import PostgresWindows
from llmserve.types import Caller, Limits, Outcome

async def main():
    postgres._CALL_SECONDS = 0.5
    store = postgres.PostgresStore(sys.argv[1])
    windows = PostgresWindows(sys.argv[1])
    await windows.open()
    grant = await windows.take(Caller(id="k", limits=Limits(concurrency=1)), 1)
    writer = UsageWriter(store)
    gate = Authenticator(store)
    tasks = [asyncio.create_task(work) for work in (writer.keep_writing(), gate.keep_fresh())]
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    print("ready", flush=True)
    await stop.wait()
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    writer.add("k", "m", Outcome.COMPLETED, 1, 0, 0)
    windows.settle(grant, 1)
    await writer.aclose()
    await windows.aclose()
    await asyncio.to_thread(store.close)

asyncio.run(main())
"""


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmserve.state.postgres._CALL_SECONDS", 0.3)
    monkeypatch.setattr("llmserve.state.postgres._PAUSE_SECONDS", 0.1)


@pytest.mark.usefixtures("impatient")
def test_a_frozen_server_does_not_hold_anybody(database: Database) -> None:
    store = PostgresStore(database.url + "?connect_timeout=2")
    calls: list[Callable[[], object]] = [
        *(store.revision, store.keys, store.credentials, store.check),
        *(lambda: store.add_usage([row()]), lambda: store.usage("a", "z", None)),
    ]
    with database.server.hanging():
        started = time.monotonic()
        with ThreadPoolExecutor(len(calls)) as pool:
            errors = list(pool.map(lambda call: error_of(call), calls))
        assert time.monotonic() - started < 1
        assert [error.message for error in errors] == [PUBLIC] * len(calls)
        assert any("no answer within 0.3 s" in for_log(error) for error in errors)
        time.sleep(0.1)
        assert "timeout" in for_log(error_of(store.check)), (
            "a new connection is tried, and not for long"
        )
        assert time.monotonic() - started < 4
    time.sleep(0.1)
    store.check()
    store.close()


def error_of(call: Callable[[], object]) -> Unavailable:
    with pytest.raises(Unavailable) as caught:
        call()
    return caught.value


@pytest.mark.anyio
@pytest.mark.usefixtures("impatient")
async def test_a_frozen_server_is_noticed(
    database: Database, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmserve.state.usage.FLUSH_SECONDS", 0.05)
    monkeypatch.setattr("llmserve.state.authenticator.REFRESH_SECONDS", 0.05)
    caplog.set_level(logging.WARNING, "llmserve")
    store = PostgresStore(database.url + "?connect_timeout=2")
    writer, gate = UsageWriter(store), Authenticator(store)
    tasks = [asyncio.create_task(work) for work in (writer.keep_writing(), gate.keep_fresh())]

    def told(what: str) -> int:
        return sum(what in record.message for record in caplog.records)

    with database.server.hanging():
        await until(lambda: writer.failing == PUBLIC and told("keys cannot be read") > 0, 2)
    await until(lambda: writer.failing is None and told("keys are read again") > 0)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert told("keys cannot be read") == told("usage cannot be written") == 1
    store.close()


def test_closing_does_not_wait_for_a_frozen_server(database: Database) -> None:
    store = PostgresStore(database.url)
    with database.server.hanging(), ThreadPoolExecutor(1) as pool:
        at_work = pool.submit(error_of, store.check)
        started = time.monotonic()
        while not store._lock.locked():
            assert time.monotonic() - started < 5
            time.sleep(0.001)
        store.close()
        assert at_work.result(2).message == PUBLIC
        assert time.monotonic() - started < 2
    assert "closed" in error_of(store.check).message


def test_a_process_ends_although_the_server_is_frozen(database: Database) -> None:
    command = [sys.executable, "-c", EXIT, database.url]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        with database.server.hanging():
            process.terminate()
            assert process.wait(15) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_running_server_does_not_tell_clients_where_it_is(database: Database) -> None:
    store = PostgresStore(database.url)
    database.cut()
    errors = [error_of(store.check), error_of(store.check)]
    database.restore()
    assert {error.message for error in errors} == {PUBLIC}
    assert "127.0.0.1" in for_log(errors[1])
    store.close()


def test_a_database_of_the_version_before_is_brought_up_to_date(database: Database) -> None:
    functions = "SELECT proname, prosrc FROM pg_proc WHERE proname LIKE 'llmserve%' ORDER BY 1"
    PostgresStore(database.url).close()
    newest = database.run(functions)
    database.run("DROP FUNCTION llmserve_end")
    database.run(
        "DO $do$ BEGIN EXECUTE replace(pg_get_functiondef('llmserve_take'::regproc), "
        "'of_day bigint := estimate', 'of_day bigint := least(estimate, per_day)'); END $do$"
    )
    database.run("UPDATE llmserve_meta SET value = 1 WHERE name = 'schema'")
    assert database.run(functions) != newest
    PostgresStore(database.url).close()
    assert database.run(functions) == newest


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
