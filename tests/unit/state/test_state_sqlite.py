"""What is special about a file."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from state_support import made_key, row, sha

from llmserve.errors import ConfigError, Unavailable
from llmserve.state import UsageWriter
from llmserve.state.protocol import UNREACHABLE, for_log
from llmserve.state.sqlite import SqliteStore
from llmserve.types import Outcome

WRITER = """
import asyncio, sys, time
from pathlib import Path
from llmserve.state import UsageWriter
from llmserve.state.sqlite import SqliteStore
from llmserve.types import Outcome

async def main():
    writer = UsageWriter(SqliteStore(Path(sys.argv[1])))
    task = asyncio.create_task(writer.keep_writing())
    count = 0
    while True:
        writer.add("k", "m", Outcome.COMPLETED, 1, 0, 0)
        count += 1
        print(count, time.monotonic(), flush=True)
        await asyncio.sleep(0.005)

asyncio.run(main())
"""
CROWDED = """
import resource, signal, sys
from pathlib import Path
from llmserve.errors import Unavailable
from llmserve.state import UsageRow
from llmserve.state.sqlite import SqliteStore
from llmserve.types import Outcome

store = SqliteStore(Path(sys.argv[1]))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
size = sum(p.stat().st_size for p in Path(sys.argv[1]).parent.glob("state.db*"))
resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
rows = [UsageRow("d", f"k{i}", "m", Outcome.FAILED, 1, 1, 1, 1) for i in range(5000)]
try:
    store.add_usage(rows)
except Unavailable as error:
    print(error.__cause__)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert store.usage("a", "z", None) == []
store.add_usage(rows)
print(len(store.usage("a", "z", None)))
"""


def test_only_the_owner_may_read(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        store = SqliteStore(tmp_path / "new" / "state.db")
        store.check()
        modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "new").iterdir()}
        store.close()
    finally:
        os.umask(old)
    assert modes == {"state.db": 0o600, "state.db-wal": 0o600, "state.db-shm": 0o600}
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700


def test_the_key_is_not_in_the_file(tmp_path: Path) -> None:
    key, secret = made_key()
    store = SqliteStore(tmp_path / "state.db")
    store.create_key(key, sha(secret))
    store.close()
    content = (tmp_path / "state.db").read_bytes()
    assert key.name.encode() in content
    assert secret[len(key.prefix) :].encode() not in content


def test_what_is_no_database_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    path.write_bytes(b"something else altogether " * 100)
    with pytest.raises(ConfigError, match=r"state\.db .*not a database"):
        SqliteStore(path)
    assert path.read_bytes().startswith(b"something else")


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    store = SqliteStore(path)
    store.add_usage([row()])
    store.close()
    content = bytearray(path.read_bytes())
    content[100:4096] = b"\xff" * (4096 - 100)
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"state\.db"):
        SqliteStore(path)


@pytest.mark.parametrize("path", ["/dev/null/state.db", "/", "/proc/nowhere/state.db"])
def test_a_place_that_cannot_be_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match="cannot hold keys and usage"):
        SqliteStore(Path(path))


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    SqliteStore(path).close()
    connection = sqlite3.connect(path)
    connection.execute("UPDATE llmserve_meta SET value = 999 WHERE name = 'schema'")
    connection.commit()
    connection.close()
    with pytest.raises(ConfigError, match="newer llmserve"):
        SqliteStore(path)


def test_a_locked_file_is_a_matter_of_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmserve.state.sqlite._BUSY_SECONDS", 0.05)
    path = tmp_path / "state.db"
    store = SqliteStore(path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable, match="locked"):
        SqliteStore(path)
    with pytest.raises(Unavailable) as caught:
        store.check()
    assert for_log(caught.value) == f"{UNREACHABLE}: database is locked"
    assert store.revision() == 0
    other.execute("ROLLBACK")
    other.close()
    store.check()
    store.close()


def test_check_sees_that_the_file_is_gone(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "state.db")
    (tmp_path / "state.db").rename(tmp_path / "elsewhere.db")
    with pytest.raises(Unavailable, match="moved or deleted"):
        store.check()
    SqliteStore(tmp_path / "state.db").close()
    with pytest.raises(Unavailable, match="moved or deleted"):
        store.check()
    store.close()


def deleted(path: Path) -> None:
    path.unlink()


def replaced(path: Path) -> None:
    other = path.with_name("other.db")
    SqliteStore(other).close()
    other.replace(path)


def overwritten(path: Path) -> None:
    path.write_bytes(b"something else altogether " * 1000)


def emptied(path: Path) -> None:
    os.truncate(path, 0)


@pytest.mark.anyio
@pytest.mark.parametrize("lose", [deleted, replaced, overwritten, emptied])
async def test_a_file_that_is_lost_stops_everything_until_a_restart(
    tmp_path: Path, lose: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "state.db"
    store = SqliteStore(path)
    writer = UsageWriter(store)
    writer.add("k", "m", Outcome.COMPLETED, 1, 0, 1)
    await writer.flush()
    assert writer.failing is None
    lose(path)
    for _ in range(3):
        writer.add("k", "m", Outcome.COMPLETED, 1, 0, 1)
        await writer.flush()
        assert writer.failing is not None
        assert "restart the server" in writer.failing
        assert str(tmp_path) not in writer.failing
        for work in (store.check, store.revision):
            with pytest.raises(Unavailable, match="restart the server"):
                work()
    await writer.aclose()
    store.close()
    assert [record.message.split(":")[0] for record in caplog.records] == [
        "usage cannot be written, and is kept for now",
        "2 rows of usage could not be written",
    ]


def test_check_sees_a_nearly_full_disk(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "state.db", min_free_bytes=2**60)
    with pytest.raises(Unavailable, match=r"state\.min_free_bytes"):
        store.check()
    store.close()


def test_a_full_disk_changes_nothing_and_passes(tmp_path: Path) -> None:
    """The file may not grow, as on a full disk; then it may again."""
    done = subprocess.run(
        [sys.executable, "-c", CROWDED, tmp_path / "state.db"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    refusal, kept = done.stdout.splitlines()
    assert "disk" in refusal or "full" in refusal
    assert kept == "5000"


def test_kill_9_loses_at_most_a_second(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    process = subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE)
    assert process.stdout is not None
    added: list[tuple[int, float]] = []
    while not added or added[-1][1] - added[0][1] < 1.7:
        count, moment = process.stdout.readline().split()
        added.append((int(count), float(moment)))
    process.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    process.wait()
    process.stdout.close()
    store = SqliteStore(path)
    kept = sum(each.requests for each in store.usage("2000-01-01", "2999-12-31", None))
    store.close()
    assert kept >= sum(1 for _, moment in added if moment < killed - 1)
    assert kept > 50
