"""``llmserve config`` shows what ``serve`` would use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from cli_support import Run

from llmserve.cli.options import SHORTHANDS
from llmserve.settings_keys import setting_keys

CONFIGS = Path(__file__).parents[3] / "configs"


def shown(llmserve: Run, *args: str, **environ: str) -> dict[str, Any]:
    done = llmserve("config", "--json", *args, **environ)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_each_shorthand_sets_its_setting(llmserve: Run) -> None:
    given = {
        "--host": ("::1", "::1"),
        "--port": ("9000", 9000),
        "--cors-origin": ("https://a.example", ["https://a.example"]),
        "--timeout": ("2.5", 2.5),
        "--max-concurrent": ("7", 7),
        "--no-gpu": (None, "cpu"),
        "--no-metrics": (None, False),
        "--api-key": ("k", ["**********"]),
        "--served-model-name": ("m", ["m"]),
        "--log-level": ("debug", "debug"),
        "--engine": ("fake", "fake"),
    }
    assert given.keys() == {shorthand.flag for shorthand in SHORTHANDS}
    args = [word for flag, (text, _) in given.items() for word in (flag, text) if word is not None]
    result = shown(llmserve, "some/model", *args)
    for shorthand in SHORTHANDS:
        section, field = shorthand.key.split(".")
        assert result["settings"][section][field] == given[shorthand.flag][1]
        assert result["sources"][shorthand.key] == f"flag {shorthand.flag}"
    assert result["settings"]["model"]["source"] == "some/model"
    assert result["sources"]["model.source"] == "argument MODEL"


def test_repeated_flags_and_empty_ones(llmserve: Run) -> None:
    result = shown(llmserve, "--cors-origin", "a", "--cors-origin", "b,c")
    assert result["settings"]["server"]["cors_origins"] == ["a", "b,c"]
    assert llmserve("config", "--host", "").returncode == 2
    assert llmserve("config", "--api-key", "").returncode == 2


def test_in_a_pipe_it_is_plain_lines(llmserve: Run) -> None:
    done = llmserve("config", "--set", "engine.seed=1", LLMSERVE_MODEL__VERSION="2")
    lines = done.stdout.splitlines()
    assert 'model.version = "2"  (environment LLMSERVE_MODEL__VERSION)' in lines
    assert "engine.seed = 1  (--set engine.seed)" in lines
    assert len(lines) == len(setting_keys()) + 1
    assert "\x1b" not in done.stdout


def test_secrets_are_masked(llmserve: Run) -> None:
    args = ["--api-key", "hunter2", "--set", "engine.hf_token=hunter2"]
    for form in ([], ["--json"]):
        done = llmserve("config", *form, *args)
        assert done.returncode == 0
        assert "hunter2" not in done.stdout + done.stderr


def test_the_schema_accepts_the_examples_and_refuses_mistakes(llmserve: Run) -> None:
    schema = json.loads(llmserve("config", "--schema").stdout)
    for path in CONFIGS.glob("*.yaml"):
        jsonschema.validate(yaml.safe_load(path.read_text()), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"server": {"prot": 1}}, schema)
