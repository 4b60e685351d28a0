"""The names under ``engine:`` are those of the installed vLLM."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from llmserve.engine.vllm import argnames
from llmserve.engine.vllm.argnames import FRONTEND, OWNED, engine_argument_names
from llmserve.errors import ConfigError
from llmserve.settings_keys import setting_keys
from llmserve.settings_load import load_settings
from tests.growth import cpu_ratio

NAMES = engine_argument_names()
needs_vllm = pytest.mark.skipif(NAMES is None, reason="vLLM is not installed")


@needs_vllm
@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("max_model_length", "Did you mean max_model_len?"),
        ("tensor-parallel-size", "Did you mean tensor_parallel_size?"),
        ("gpu_memory_utilisation", "Did you mean gpu_memory_utilization?"),
        ("zzz", "engine.zzz is not an argument of the installed vLLM."),
        ("_api_process_rank", "is not an argument of the installed vLLM."),
        ("trust_request_chat_template", "is not an argument of the installed vLLM."),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(name: str, meant: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(environ={}, sets=[f"engine.{name}=1"])
    assert meant in caught.value.message
    assert caught.value.message.startswith(f"--set engine.{name}: ")


@pytest.mark.parametrize(("name", "ours"), OWNED.items())
def test_arguments_that_are_ours_point_to_our_setting(name: str, ours: str) -> None:
    assert ours in setting_keys()
    with pytest.raises(
        ConfigError, match=f"engine.{name} is not given to vLLM directly; set {ours}"
    ):
        load_settings(environ={}, sets=[f"engine.{name}=1"])


@needs_vllm
def test_the_honoured_arguments_of_the_openai_layer_exist() -> None:
    assert NAMES is not None
    assert NAMES >= FRONTEND
    assert {"tensor_parallel_size", "max_model_len", "speculative_config"} <= NAMES
    assert not NAMES & OWNED.keys()


@needs_vllm
def test_reading_the_names_is_quick() -> None:
    root = argnames._vllm_folder()
    assert root is not None
    source = (root / "engine/arg_utils.py").read_text()
    # The files are parsed once and nothing of vLLM is imported.
    assert cpu_ratio(engine_argument_names, lambda: ast.parse(source)) < 3


def test_without_vllm_the_names_are_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(argnames, "find_spec", lambda _name: None)
    loaded = load_settings(environ={}, sets=["engine.anything=1"])
    assert loaded.settings.engine == {"anything": 1}
    assert loaded.notes == ("The arguments under engine: are not checked: vLLM is not installed.",)


def test_a_vllm_that_looks_different_is_not_checked_either(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").touch()
    monkeypatch.setattr(argnames, "_vllm_folder", lambda: tmp_path / "vllm")
    assert engine_argument_names() is None


def test_class_fields(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text("class A:\n a: int = 1\n b = 2\n def c(self): d: int = 1\nclass B:\n e: int\n")
    assert argnames.class_fields(file, ["A"]) == {"a"}


@pytest.mark.real
@needs_vllm
def test_the_names_are_the_fields_of_the_real_dataclass() -> None:
    program = (
        "import dataclasses, json; from vllm.engine.arg_utils import AsyncEngineArgs; "
        "print(json.dumps([f.name for f in dataclasses.fields(AsyncEngineArgs)]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    fields = {name for name in json.loads(done.stdout.splitlines()[-1]) if name[0] != "_"}
    assert NAMES is not None
    assert fields - OWNED.keys() == NAMES - FRONTEND
