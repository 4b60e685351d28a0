"""The cache: where it is, and that what has its final name is complete."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import pytest

from llmserve.errors import SetupError
from llmserve.provision import cache as module
from llmserve.provision.cache import (
    Interrupted,
    default_cache_dir,
    identity,
    in_words,
    locked,
    make_folder,
    require_space,
    resumable,
)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"LLMSERVE_CACHE": "/big/disk", "XDG_CACHE_HOME": "/x", "HOME": "/h"}, "/big/disk"),
        ({"XDG_CACHE_HOME": "/x", "HOME": "/h"}, "/x/llmserve"),
        ({"XDG_CACHE_HOME": "relative", "HOME": "/h"}, "/h/.cache/llmserve"),
        ({"LLMSERVE_CACHE": "", "HOME": "/h"}, "/h/.cache/llmserve"),
    ],
)
def test_place_of_the_cache(environ: dict[str, str], expected: str) -> None:
    assert default_cache_dir(environ) == Path(expected)


def attempt(target: Path, error: BaseException | None = None) -> list[str]:
    """Work that leaves one file more, and ends with ``error``; what was there before."""
    with resumable(target) as folder:
        before = sorted(each.name for each in folder.iterdir())
        (folder / f"part-{len(before)}").touch()
        assert not target.exists()
        if error is not None:
            raise error
    return before


def test_a_folder_appears_when_complete(tmp_path: Path) -> None:
    assert attempt(tmp_path / "models" / "one") == []
    assert [each.name for each in (tmp_path / "models").iterdir()] == ["one"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Interrupted("killed")])
def test_interrupted_work_goes_on(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        attempt(tmp_path / "one", error)
    assert attempt(tmp_path / "one") == ["part-0"]
    assert [each.name for each in tmp_path.iterdir()] == ["one"]


def test_work_that_cannot_be_done_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(SetupError):
        attempt(tmp_path / "one", SetupError("no"))
    assert list(tmp_path.iterdir()) == []


def test_lock_makes_the_second_wait(tmp_path: Path) -> None:
    order: list[str] = []
    waiting = threading.Event()

    def notify(text: str, _: float | None) -> None:
        order.append(text)
        waiting.set()

    def second() -> None:
        with locked(tmp_path, "demo", notify):
            order.append("second")

    with locked(tmp_path, "demo"):
        thread = threading.Thread(target=second)
        thread.start()
        assert waiting.wait(5)
        order.append("first done")
    thread.join(5)
    assert order == [
        "Waiting for another process that prepares demo",
        "first done",
        "second",
    ]


def test_identity_is_remembered_until_the_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, cache = tmp_path / "model", tmp_path / "cache"
    file.write_bytes(b"one")
    first = identity(file, cache)
    monkeypatch.setattr(module, "sha256_of", None)
    assert identity(file, cache) == first
    monkeypatch.undo()
    file.write_bytes(b"other")
    assert identity(file, cache) != first


def test_damaged_note_of_an_identity_is_ignored(tmp_path: Path) -> None:
    file, cache = tmp_path / "model", tmp_path / "cache"
    file.write_bytes(b"one")
    first = identity(file, cache)
    for note in (cache / "identity").iterdir():
        note.write_text("[]")
    assert identity(file, cache) == first


def test_space_is_checked_on_the_nearest_folder(tmp_path: Path) -> None:
    require_space(tmp_path / "not" / "there", 1, "This")
    with pytest.raises(SetupError, match=r"This needs .* on disk; .* LLMSERVE_CACHE"):
        require_space(tmp_path / "not", shutil.disk_usage(tmp_path).free * 2, "This")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(SetupError, match="LLMSERVE_CACHE"):
        make_folder(tmp_path / "cache")


def test_cache_under_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match="LLMSERVE_CACHE"):
        make_folder(tmp_path / "file" / "cache")


def test_sizes_in_words() -> None:
    assert in_words(98_362_432) == "98 MB"
    assert in_words(1_540_000_000) == "1.5 GB"
