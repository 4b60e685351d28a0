"""``llmserve keys``: what it prints, what it changes, what it refuses."""

from __future__ import annotations

import json
import os
import re
import shlex
import stat
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from llmserve.cli.main import run
from llmserve.cli.state import default_state_path
from llmserve.errors import Unauthenticated
from llmserve.state import Authenticator, UsageRow
from llmserve.state.sqlite import SqliteStore
from llmserve.types import Limits, Outcome, Scope

KEY = re.compile(r"sk-llmserve-[A-Za-z0-9_-]{43}")
Said = tuple[int, str, str]
Keys = Callable[..., Said]


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the state is when nothing says otherwise."""
    for name in os.environ:
        if name.startswith("LLMSERVE_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path / "llmserve" / "llmserve.db"


@pytest.fixture
def keys(path: Path, capsys: pytest.CaptureFixture[str]) -> Keys:
    def run_keys(*arguments: str) -> Said:
        code = run(["keys", *arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run_keys


@pytest.fixture
def store(path: Path) -> Iterator[SqliteStore]:
    """What a running server has open."""
    store = SqliteStore(path)
    yield store
    store.close()


def listed(keys: Keys) -> list[dict[str, Any]]:
    code, out, _ = keys("list", "--json")
    assert code == 0
    result: list[dict[str, Any]] = json.loads(out)
    return result


def test_the_key_alone_is_on_standard_output(keys: Keys, path: Path) -> None:
    code, out, err = keys("create", "alice")
    assert code == 0
    secret = out.removesuffix("\n")
    assert KEY.fullmatch(secret)
    assert secret not in err
    assert "cannot be shown again" in err
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for form in ([], ["--json"]):
        _, out, err = keys("list", *form)
        assert "alice" in out
        assert secret[:18] in out
        assert secret not in out + err


def test_a_running_server_takes_the_key_with_all_its_limits(keys: Keys, store: SqliteStore) -> None:
    gate = Authenticator(store)
    assert not gate.required
    limits = {"requests-per-minute": 60, "tokens-per-minute": 7, "concurrency": 3}
    words = [word for name, number in limits.items() for word in (f"--{name}", str(number))]
    more = ["--tokens-per-day", "100", "--scope", "metrics", "--scope", "infer"]
    code, out, _ = keys(
        *("create", "bob", *words, *more, "--model", "a", "--model", "b,c", "--weight", "2.5"),
        *("--expires", "30d", "--json"),
    )
    assert code == 0
    made = json.loads(out)
    gate.refresh()
    caller = gate.authenticate(f"Bearer {made['key']}", None)
    assert (caller.id, caller.name, caller.weight) == (made["id"], "bob", 2.5)
    assert caller.limits == Limits(60, 7, 3, 100)
    assert caller.scopes == {Scope.METRICS, Scope.INFER}
    assert caller.models == {"a", "b,c"}
    entry = listed(keys)[0]
    assert {name: made[name] for name in entry} == entry
    assert made.keys() - entry.keys() == {"key"}
    expires = datetime.fromisoformat(entry["expires_at"])
    assert abs(expires - datetime.now(UTC) - timedelta(days=30)) < timedelta(minutes=1)


def test_a_day_of_expiry_is_valid_to_its_end(keys: Keys) -> None:
    assert keys("create", "a", "--expires", "2999-12-31")[0] == 0
    assert listed(keys)[0]["expires_at"] == "3000-01-01T00:00:00Z"


@pytest.mark.parametrize(
    "wrong",
    [
        ["--expires", "yesterday"],
        ["--expires", "2001-01-01"],
        ["--expires", "0d"],
        ["--expires", "99999999w"],
        ["--expires", "9999-12-31"],
        ["--weight", "0"],
        ["--weight", "nan"],
        ["--concurrency", "0"],
        ["--tokens-per-day", "99999999999999999999"],
        ["--scope", "root"],
        ["--set", "state.url=mysql://x"],
        ["--config", "/dev/null/none.yaml"],
    ],
)
def test_wrong_values_are_refused(keys: Keys, wrong: list[str], path: Path) -> None:
    code, out, err = keys("create", "alice", *wrong)
    assert (code, out) == (2, "")
    assert err
    assert not path.exists() or not listed(keys)


@pytest.mark.parametrize("name", ["", " ", "a b", "a\nb", "anonymous", "key-1", "static-1", "é"])
def test_names_that_could_deceive_are_refused(keys: Keys, name: str) -> None:
    code, out, err = keys("create", "--", name)
    assert (code, out) == (2, "")
    assert "letters, digits" in err


def test_a_name_is_given_once(keys: Keys) -> None:
    assert keys("create", "alice")[0] == 0
    code, out, err = keys("create", "alice")
    assert (code, out) == (1, "")
    assert "'alice' already" in err


def test_revoking(keys: Keys, store: SqliteStore) -> None:
    _, secret, _ = keys("create", "alice")
    gate = Authenticator(store)
    gate.authenticate(None, secret)
    assert keys("revoke", "alice")[:2] == (0, "")
    gate.refresh()
    with pytest.raises(Unauthenticated, match="revoked"):
        gate.authenticate(None, secret)
    assert listed(keys)[0]["status"] == "revoked"
    code, _, err = keys("revoke", listed(keys)[0]["id"])
    assert (code, "already" in err) == (1, True)
    assert keys("rotate", "alice")[0] == 1
    code, _, err = keys("revoke", "nobody")
    assert (code, "'nobody'" in err) == (1, True)


def test_a_name_means_the_key_in_force(keys: Keys) -> None:
    for _ in range(2):
        keys("create", "alice")
        assert keys("revoke", "alice")[0] == 0
    code, _, err = keys("revoke", "alice")
    assert (code, "Several revoked" in err) == (1, True)
    keys("create", "alice")
    assert keys("revoke", "alice")[0] == 0
    assert [key["status"] for key in listed(keys)] == ["revoked"] * 3


def test_rotating(keys: Keys, store: SqliteStore) -> None:
    _, first, _ = keys("create", "alice", "--concurrency", "3")
    code, second, err = keys("rotate", "alice", "--grace", "24h")
    assert (code, bool(KEY.fullmatch(second.strip()))) == (0, True)
    assert "works until" in err
    gate = Authenticator(store)
    assert gate.authenticate(None, first) == gate.authenticate(None, second)
    third = json.loads(keys("rotate", "alice", "--json")[1])
    gate.refresh()
    assert gate.authenticate(None, third["key"]).limits.concurrency == 3
    assert third["prefix"] == third["key"][:18] == listed(keys)[0]["prefix"]
    for old in (first, second):
        with pytest.raises(Unauthenticated):
            gate.authenticate(None, old)


def test_usage(keys: Keys, store: SqliteStore) -> None:
    keys("create", "alice")
    alice = listed(keys)[0]["id"]
    today = datetime.now(UTC).date()
    days = [(today - timedelta(days=ago)).isoformat() for ago in (40, 1, 0)]
    store.add_usage(
        [UsageRow(day, alice, "m", Outcome.COMPLETED, 1, 10, 4, 5) for day in days]
        + [UsageRow(days[2], "static-1", "m", Outcome.FAILED, 2, 1, 0, 0)]
    )
    everything = json.loads(keys("usage", "--json")[1])
    assert everything["total"] == {
        "requests": 4,
        "prompt_tokens": 21,
        "cached_tokens": 8,
        "completion_tokens": 10,
    }
    assert [row["key_name"] for row in everything["rows"]] == ["alice", "alice", "static-1"]
    one = json.loads(keys("usage", "--json", "--from", days[0], "--to", days[1])[1])
    assert [row["day"] for row in one["rows"]] == days[:2]
    other = json.loads(keys("usage", "--json", "--key", "static-1")[1])
    assert other["total"]["requests"] == 2
    _, out, _ = keys("usage", "--key", "alice", "--from", days[2])
    assert out.splitlines() == [
        "day\tkey\tmodel\toutcome\trequests\tprompt\tcached\tcompletion",
        f"{days[2]}\talice\tm\tcompleted\t1\t10\t4\t5",
    ]
    assert keys("usage", "--from", days[2], "--to", days[1])[0] == 2
    assert keys("usage", "--from", "2026-13-01")[0] == 2
    assert keys("usage", "--key", "nobody")[0] == 1


def test_the_settings_say_where_the_state_is(keys: Keys, path: Path, tmp_path: Path) -> None:
    place = tmp_path / "other.db"
    assert keys("create", "a", "--set", f"state.url=sqlite://{place}")[0] == 0
    assert place.exists()
    assert not path.exists()
    file = tmp_path / "llmserve.yaml"
    file.write_text(f"state:\n  url: sqlite://{place}\n")
    _, out, _ = keys("list", "--config", str(file))
    assert out.splitlines()[1].split("\t")[1:3] == ["a", "active"]


def test_the_default_place() -> None:
    file = Path("llmserve") / "llmserve.db"
    assert default_state_path({"XDG_STATE_HOME": "/s", "HOME": "/h"}) == Path("/s") / file
    assert default_state_path({"XDG_STATE_HOME": "s", "HOME": "/h"}) == (
        Path("/h/.local/state") / file
    )
    assert default_state_path({}) == Path("/var/lib") / file


def test_a_file_that_is_no_database(keys: Keys, path: Path) -> None:
    path.parent.mkdir()
    path.write_text("hello" * 1000)
    code, out, err = keys("list")
    assert (code, out) == (2, "")
    assert str(path) in err


def test_an_expired_key_is_shown_as_such(keys: Keys) -> None:
    keys("create", "a", "--expires", "1s")
    until = time.monotonic() + 5
    while listed(keys)[0]["status"] == "active":
        assert time.monotonic() < until
        time.sleep(0.05)
    assert listed(keys)[0]["status"] == "expired"


def test_the_commands_of_the_document_work(keys: Keys, tmp_path: Path) -> None:
    text = (Path(__file__).parents[3] / "docs" / "keys.md").read_text("utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    commands = [line for block in blocks for line in block.splitlines()]
    assert len(commands) > 8
    for line in commands:
        program, group, *words = shlex.split(line.replace("/tmp/", f"{tmp_path}/"))  # noqa: S108
        assert (program, group) == ("llmserve", "keys")
        code, _, err = keys(*words)
        assert code == 0, (line, err)
