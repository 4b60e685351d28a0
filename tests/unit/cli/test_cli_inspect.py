"""``llmserve inspect`` as a person and as a script see it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


def inspect(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "llmserve", "inspect", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture(scope="module")
def folder(tiny_folder: Path) -> str:
    return str(tiny_folder)


def test_a_person_sees_the_facts(folder: str) -> None:
    done = inspect(folder, "--tensors")
    assert done.returncode == 0, done.stderr
    assert "LlamaForCausalLM" in done.stdout
    assert "safetensors" in done.stdout
    assert "lm_head.weight" in done.stdout
    assert "\x1b" not in done.stdout


def test_a_script_gets_json(folder: str) -> None:
    done = inspect(folder, "--json", "--tensors")
    model = json.loads(done.stdout)
    assert model["architecture"] == "LlamaForCausalLM"
    assert model["dimensions"]["layers"] == 1
    assert len(model["tensors"]) == 12
    assert sum(each["bytes"] for each in model["tensors"]) == 2 * model["parameters"]["total"]
    assert "tensors" not in json.loads(inspect(folder, "--json").stdout)


def test_what_is_no_model_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"no model")
    done = inspect(str(path))
    assert done.returncode == 1
    assert done.stderr.startswith("llmserve: ")
    assert "Traceback" not in done.stderr


def test_a_cut_file_is_told_apart(folder: str, tmp_path: Path) -> None:
    whole = (Path(folder) / "model.safetensors").read_bytes()
    path = tmp_path / "model.safetensors"
    path.write_bytes(whole[:-1000])
    done = inspect(str(path))
    assert done.returncode in (1, 3)
    assert "model.safetensors" in done.stdout + done.stderr
