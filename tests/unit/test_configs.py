"""Every example in ``configs/`` is valid with the installed vLLM."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from llmserve.engine.vllm.argnames import engine_argument_names
from llmserve.settings_load import load_settings

FOLDER = Path(__file__).parents[2] / "configs"
EXAMPLES = sorted(FOLDER.glob("*.yaml"))


def test_the_promised_examples_are_there() -> None:
    assert {path.stem for path in EXAMPLES} >= {
        "cpu-demo",
        "one-gpu",
        "tensor-parallel",
        "multi-node",
        "lora",
        "quantized",
    }


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_example_loads(path: Path) -> None:
    loaded = load_settings(environ={}, config=path)
    names = engine_argument_names()
    assert names is None or loaded.settings.engine.keys() <= names
    assert loaded.settings.model.served_names
    assert loaded.sources["model.source"].startswith(f"{path}:")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_example_says_how_to_use_it_and_why(path: Path) -> None:
    text = path.read_text()
    assert f"llmserve serve --config configs/{path.name}" in text
    comments = [line for line in text.splitlines() if re.match(r"\s*# \w", line)]
    assert len(comments) >= 8


@pytest.mark.real
@pytest.mark.skipif(engine_argument_names() is None, reason="vLLM is not installed")
def test_vllm_accepts_the_values_of_the_examples() -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from llmserve.engine.vllm.args import build_namespace\n"
        "from llmserve.settings_load import load_settings\n"
        "for path in sys.argv[1:]:\n"
        "    settings = load_settings(environ={}, config=Path(path)).settings\n"
        "    build_namespace(settings, 'm', {}, on_cpu=False)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, EXAMPLES)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
