"""Processes that were started ahead do what spawned ones do."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from contextlib import closing
from importlib.util import find_spec
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from multiprocessing.synchronize import Lock
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest

from llmserve.engine.vllm import headstart
from llmserve.engine.vllm.headstart import HeadStart, memory

NAME = "EngineCore"


def work(answers: Connection, lock: Lock) -> None:
    """What the child does; it gets a file and a lock, as vLLM's workers do."""
    with lock:
        answers.send({"pid": os.getpid(), "setting": os.environ.get("SETTING")})
    sys.exit(7)


@pytest.fixture
def starter() -> ModuleType:
    """A module that starts processes the way vLLM's modules do."""
    module = ModuleType("starter")
    vars(module)["get_mp_context"] = lambda: multiprocessing.get_context("spawn")
    return module


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SETTING", "before")


def begin(ahead: HeadStart, module: ModuleType) -> tuple[SpawnProcess, dict[str, Any]]:
    """Start a process; it, and its answer."""
    with ahead.serving([module]):
        context = module.get_mp_context()
        answers, theirs = context.Pipe(duplex=False)
        lock = context.Lock()
        process = context.Process(target=work, args=(theirs, lock), name=NAME)
        process.start()
        theirs.close()
        return process, answers.recv() if answers.poll(60) else {}


def one_start(folder: Path, module: ModuleType, wanted: str) -> tuple[set[int], dict[str, Any]]:
    """One start of a server: the environment becomes what it must be only after the head
    start. Returns who was there ahead, and the answer of the process."""
    os.environ["SETTING"] = "before"
    before = {child.pid for child in psutil.Process().children()}
    with closing(HeadStart(folder)) as ahead:
        early = {child.pid for child in psutil.Process().children()} - before
        os.environ["SETTING"] = wanted
        process, answer = begin(ahead, module)
        assert process.pid == answer["pid"]
        process.join(60)
        assert process.exitcode == 7, "its exit code arrives"
        assert not process.is_alive()
    return early, answer


def test_the_second_start_finds_its_process_there(tmp_path: Path, starter: ModuleType) -> None:
    early, answer = one_start(tmp_path, starter, "set")
    assert answer["pid"] not in early
    assert answer["setting"] == "set"
    early, answer = one_start(tmp_path, starter, "set")
    assert answer["pid"] in early
    assert answer["setting"] == "set", "it has the environment of the start before"


def test_a_wrong_guess_is_put_right(tmp_path: Path, starter: ModuleType) -> None:
    one_start(tmp_path, starter, "one")
    early, answer = one_start(tmp_path, starter, "two")
    assert answer["pid"] not in early
    assert answer["setting"] == "two"
    assert not any(psutil.pid_exists(pid) for pid in early - {answer["pid"]})
    assert one_start(tmp_path, starter, "two")[1]["pid"]


def test_guesses_that_are_always_wrong_are_given_up(tmp_path: Path, starter: ModuleType) -> None:
    guessed = [bool(one_start(tmp_path, starter, str(number))[0]) for number in range(5)]
    assert guessed == [False, True, True, False, False]


def test_other_settings_begin_with_what_is_known(tmp_path: Path, starter: ModuleType) -> None:
    one_start(memory(tmp_path, "some settings"), starter, "set")
    early, answer = one_start(memory(tmp_path, "others"), starter, "set")
    assert answer["pid"] in early
    early, answer = one_start(memory(tmp_path, "others"), starter, "of these only")
    assert answer["setting"] == "of these only"
    assert one_start(memory(tmp_path, "some settings"), starter, "set")[1]["pid"]


def test_guesses_that_were_wrong_are_not_passed_on(tmp_path: Path, starter: ModuleType) -> None:
    for wanted in ("one", "two"):
        one_start(memory(tmp_path, "some settings"), starter, wanted)
    assert not one_start(memory(tmp_path, "others"), starter, "two")[0]


def test_what_cannot_be_used_is_passed_over(tmp_path: Path, starter: ModuleType) -> None:
    """The last start was no good example: a damaged file, guesses that were wrong, a stray
    file. The one before it was."""
    one_start(memory(tmp_path, "good"), starter, "set")
    (damaged := memory(tmp_path, "damaged")).mkdir(exist_ok=True)
    (damaged / f"{NAME}.json").write_text("[")
    for wanted in ("one", "two"):
        one_start(memory(tmp_path, "wrong"), starter, wanted)
    (tmp_path / "stray").write_text("")
    early, answer = one_start(memory(tmp_path, "others"), starter, "set")
    assert answer["pid"] in early


def test_only_so_many_settings_are_remembered(tmp_path: Path, starter: ModuleType) -> None:
    for number in range(headstart._MOST_FOLDERS + 5):
        memory(tmp_path, str(number)).mkdir(exist_ok=True)
    one_start(folder := memory(tmp_path, "one more"), starter, "set")
    assert len(list(tmp_path.iterdir())) == headstart._MOST_FOLDERS
    assert folder.is_dir()


def test_modules_of_other_settings_are_put_right(tmp_path: Path, starter: ModuleType) -> None:
    one_start(tmp_path, starter, "set")
    path = tmp_path / f"{NAME}.json"
    right = path.read_text()
    path.write_text(json.dumps(json.loads(right) | {"modules": ["json", "no.such.module"]}))
    early, answer = one_start(tmp_path, starter, "set")
    assert answer["pid"] in early
    assert path.read_text() == right


def test_what_nobody_asks_for_is_forgotten(
    tmp_path: Path, starter: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other settings had two workers, these have one."""
    monkeypatch.setattr(headstart, "_UNASKED_SECONDS", 0.0)
    one_start(tmp_path, starter, "set")
    spare = tmp_path / "Spare.json"
    spare.write_text((tmp_path / f"{NAME}.json").read_text())
    before = set(psutil.Process().children())
    with closing(HeadStart(tmp_path)) as ahead:
        (tmp_path / f"{NAME}.json").unlink()
        early = set(psutil.Process().children()) - before
        assert len(early) == 2
        ahead.forget_later()
        deadline = time.monotonic() + 20
        while spare.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not spare.exists()
        _gone, alive = psutil.wait_procs(early, timeout=20)
        assert not alive


def test_what_nobody_asked_for_ends(tmp_path: Path, starter: ModuleType) -> None:
    one_start(tmp_path, starter, "set")
    before = {child.pid for child in psutil.Process().children()}
    HeadStart(tmp_path).close()
    assert {child.pid for child in psutil.Process().children()} <= before


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"misses": 0, "modules": 3}'])
def test_a_damaged_memory_is_no_obstacle(tmp_path: Path, starter: ModuleType, text: str) -> None:
    (tmp_path / f"{NAME}.json").write_text(text)
    assert one_start(tmp_path, starter, "set")[1]["setting"] == "set"


def test_a_process_that_ends_too_early_is_replaced(tmp_path: Path, starter: ModuleType) -> None:
    one_start(tmp_path, starter, "before")
    before = set(psutil.Process().children())
    with closing(HeadStart(tmp_path)) as ahead:
        (early,) = set(psutil.Process().children()) - before
        early.kill()
        process, answer = begin(ahead, starter)
        assert answer["pid"] == process.pid != early.pid
        process.join(60)


def test_modules_that_are_gone_are_no_obstacle(tmp_path: Path, starter: ModuleType) -> None:
    one_start(tmp_path, starter, "set")
    path = tmp_path / f"{NAME}.json"
    last = json.loads(path.read_text())
    path.write_text(json.dumps(last | {"modules": ["there.is.no.such.module"]}))
    early, answer = one_start(tmp_path, starter, "set")
    assert answer["pid"] in early


def test_a_folder_that_cannot_be_written_is_no_obstacle(starter: ModuleType) -> None:
    assert one_start(Path("/proc/nowhere"), starter, "set")[1]["setting"] == "set"


def test_another_method_of_starting_is_left_alone(tmp_path: Path) -> None:
    module = ModuleType("forking")
    vars(module)["get_mp_context"] = lambda: multiprocessing.get_context("fork")
    with closing(HeadStart(tmp_path)) as ahead, ahead.serving([module]):
        assert module.get_mp_context() is multiprocessing.get_context("fork")


def test_modules_are_left_as_they_were(tmp_path: Path, starter: ModuleType) -> None:
    before, other = starter.get_mp_context, ModuleType("other")
    with closing(HeadStart(tmp_path)) as ahead, ahead.serving([starter, other]):
        assert starter.get_mp_context is not before
    assert starter.get_mp_context is before
    assert not hasattr(other, "get_mp_context")


@pytest.mark.parametrize("module", ["v1/engine/utils.py", "v1/executor/multiproc_executor.py"])
def test_vllm_starts_its_processes_where_we_look(module: str) -> None:
    """Without it a start is slow and nothing else: only this test would tell."""
    vllm = find_spec("vllm")
    if vllm is None or not vllm.submodule_search_locations:
        pytest.skip("vLLM is not installed")
    source = (Path(vllm.submodule_search_locations[0]) / module).read_text()
    assert "context = get_mp_context()" in source
