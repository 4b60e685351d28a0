"""The type of the weights on CPUs with and without arithmetic of 16 bits."""

from __future__ import annotations

import json
from pathlib import Path

import psutil
import pytest

pytest.importorskip("vllm")

from llmserve.engine.vllm import dtypes

pytestmark = [pytest.mark.real, pytest.mark.filterwarnings("default")]


def _engine_args(model: Path, **more: object) -> object:
    from vllm.engine.arg_utils import AsyncEngineArgs

    return AsyncEngineArgs(model=str(model), **more)


@pytest.fixture
def quantized(tiny_folder: Path, tmp_path: Path) -> Path:
    """The tiny model as if its weights were of 4 bits: its configuration is read, no more."""
    for file in tiny_folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    config = json.loads((tiny_folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "awq",
        "bits": 4,
        "group_size": 64,
        "zero_point": True,
    }
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_a_cpu_without_16_bits_gets_float32(
    tiny_folder: Path, quantized: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only where vLLM is free to choose, and the kernels take it."""
    monkeypatch.setattr(dtypes, "halves_are_slow", lambda: True)
    assert dtypes.fitting_dtype(_engine_args(tiny_folder)) == "float32"
    assert dtypes.fitting_dtype(_engine_args(tiny_folder, dtype="bfloat16")) == "bfloat16"
    assert dtypes.fitting_dtype(_engine_args(quantized)) == "auto"


def test_weights_that_would_not_fit_keep_their_type(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slow is better than not at all."""
    monkeypatch.setattr(dtypes, "halves_are_slow", lambda: True)
    for file in tiny_folder.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).symlink_to(file)
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(psutil.virtual_memory().total // 2)
    assert dtypes.fitting_dtype(_engine_args(tmp_path)) == "auto"


def test_any_other_machine_keeps_the_type_of_the_file(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dtypes, "halves_are_slow", lambda: False)
    assert dtypes.fitting_dtype(_engine_args(tiny_folder)) == "auto"


def test_what_is_slow_is_what_the_cpu_says() -> None:
    """AVX-512 is what oneDNN calculates 16 bits with."""
    from vllm.platforms import CpuArchEnum, current_platform

    if not current_platform.is_cpu() or current_platform.get_cpu_architecture() != CpuArchEnum.X86:
        pytest.skip("asks about x86 CPUs")
    flags = Path("/proc/cpuinfo").read_text().split()
    assert dtypes.halves_are_slow() == ("avx512f" not in flags)
