"""Two models side by side, in the library and on the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llmserve.modelfile import compare, describe
from tests.unit.modelfile.model_files import llama, llama_keys

Ran = subprocess.CompletedProcess[str]


def inspect(*args: str, **environ: str) -> Ran:
    import os

    command = [sys.executable, "-m", "llmserve", "inspect", *args]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env=os.environ | environ
    )


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    one, two = tmp_path / "one.gguf", tmp_path / "two.gguf"
    one.write_bytes(llama().build())
    changed = llama()
    changed.keys = llama_keys(
        llama__context_length=("u32", 8192),
        tokenizer__ggml__eos_token_id=("u32", 1),
        general__name=("str", "Another"),
    )
    changed.tensors = {**changed.tensors, "more": ((32,), 0, 128)}
    two.write_bytes(changed.build())
    return one, two


def test_what_differs(pair: tuple[Path, Path]) -> None:
    found = compare(*map(describe, pair))
    assert not found.equal
    assert "dimensions.context_length" in [each.what for each in found.configuration]
    assert "llama.context_length" in [each.what for each in found.configuration]
    assert "general.name" not in [each.what for each in found.configuration]
    assert any("eos" in each.what or "special" in each.what for each in found.tokenizer)
    assert [(each.what, each.a, each.b) for each in found.tensors] == [("more", None, "F32 [32]")]


def test_equal_headers_with_other_data(pair: tuple[Path, Path]) -> None:
    one, two = pair
    data = bytearray(one.read_bytes())
    data[-300:-200] = b"x" * 100
    two.write_bytes(data)
    assert compare(describe(one), describe(one)).same_data
    found = compare(describe(one), describe(two))
    assert found.equal
    assert inspect(str(one), str(two)).returncode == 0


def test_the_command_exits_like_diff(pair: tuple[Path, Path], tmp_path: Path) -> None:
    one, two = map(str, pair)
    same, other = inspect(one, one), inspect(one, two)
    assert (same.returncode, other.returncode) == (0, 1)
    assert "are equal" in same.stdout
    assert "more: - → F32 [32]" in other.stdout
    shown: dict[str, Any] = json.loads(inspect(one, two, "--json").stdout)
    assert shown["tensors"] == [{"what": "more", "a": None, "b": "F32 [32]"}]
    (tmp_path / "bad").write_bytes(b"no model")
    assert inspect(one, str(tmp_path / "bad")).returncode == 2
    assert inspect(one, str(tmp_path / "nowhere")).returncode == 2
    assert inspect(one, one, one).returncode == 2


def test_an_estimate_and_its_exit_code(pair: tuple[Path, Path]) -> None:
    one = str(pair[0])
    fits = inspect(one, "--estimate", "--memory", "80GiB", "--context", "4096")
    assert fits.returncode == 0, fits.stderr
    assert "can be served" in fits.stdout
    no = inspect(one, "--memory", "1MB")
    assert no.returncode == 4
    assert "nearest" in no.stdout
    shown = json.loads(inspect(one, "--memory", "80GiB", "--json").stdout)
    assert shown["estimate"]["verdict"]["fits"]
    assert inspect(one, "--memory", "lots").returncode == 2


def test_a_name_that_the_server_would_list(pair: tuple[Path, Path]) -> None:
    folder = str(pair[0].parent)
    found = inspect("one.gguf", LLMSERVE_CATALOG__FOLDERS=json.dumps([folder]))
    assert found.returncode == 0, found.stderr
    assert "Tiny" in found.stdout
    typo = inspect("onne.gguf", LLMSERVE_CATALOG__FOLDERS=json.dumps([folder]))
    assert typo.returncode == 1
    assert "Did you mean one.gguf" in typo.stderr


def test_a_file_cannot_send_control_characters(tmp_path: Path) -> None:
    evil = llama()
    evil.keys = llama_keys(general__name=("str", "\x1b]0;owned\x07[bold]x"))
    evil.tensors = {**evil.tensors, "\x1b[2Jname": ((32,), 0, 128)}
    path = tmp_path / "evil.gguf"
    path.write_bytes(evil.build())
    for args in ((str(path), "--tensors"), (str(path), str(path))):
        assert "\x1b" not in inspect(*args).stdout
    assert "[bold]x" in inspect(str(path)).stdout
