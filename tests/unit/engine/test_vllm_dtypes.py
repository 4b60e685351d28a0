"""The type of the weights on CPUs with and without arithmetic of 16 bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psutil
import pytest

pytest.importorskip("vllm")

import torch

from llmserve.engine.vllm import core, dtypes
from llmserve.engine.vllm.args import build_namespace
from llmserve.settings import ModelSettings, Settings
from tests.models import HEAD_DIM, KV_HEADS

pytestmark = [pytest.mark.real, pytest.mark.filterwarnings("default")]


HALVES_ARE_SLOW = dtypes.halves_are_slow
BFLOAT16, FLOAT32 = torch.bfloat16, torch.float32


@pytest.fixture(autouse=True)
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CPU without arithmetic of 16 bits, and with a cache of 1 GiB."""
    monkeypatch.setattr(dtypes, "halves_are_slow", lambda: True)
    monkeypatch.setattr(dtypes.envs, "VLLM_CPU_KVCACHE_SPACE", 1, raising=False)


def chosen(model: Path, **more: object) -> torch.dtype:
    found: torch.dtype = dtypes.FittingArgs(model=str(model), **more).create_model_config().dtype
    return found


def linked(folder: Path, target: Path, **changed: object) -> Path:
    """The same model with another configuration: that is read, and no more."""
    for file in folder.iterdir():
        (target / file.name).symlink_to(file)
    config = json.loads((folder / "config.json").read_text())
    (target / "config.json").unlink()
    (target / "config.json").write_text(json.dumps(config | changed))
    return target


def test_a_cpu_without_16_bits_gets_float32(tiny_folder: Path) -> None:
    """Only where vLLM is free to choose."""
    assert chosen(tiny_folder) == FLOAT32
    assert chosen(tiny_folder, dtype="bfloat16") == BFLOAT16


def test_quantized_weights_keep_their_type(tiny_folder: Path, tmp_path: Path) -> None:
    how = {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True}
    assert chosen(linked(tiny_folder, tmp_path, quantization_config=how)) != FLOAT32


def test_weights_that_would_not_fit_keep_their_type(tiny_folder: Path, tmp_path: Path) -> None:
    """Slow is better than not at all."""
    model = linked(tiny_folder, tmp_path)
    (model / "model.safetensors").unlink()
    with (model / "model.safetensors").open("wb") as file:
        file.truncate(psutil.virtual_memory().total // 2)
    assert chosen(model) == BFLOAT16


def test_a_sequence_that_would_not_fit_the_cache_keeps_its_type(
    tiny_folder: Path, tmp_path: Path
) -> None:
    """vLLM would refuse to start: the cache is of so many bytes, whatever the type."""
    token = 2 * KV_HEADS * HEAD_DIM * 4
    assert chosen(linked(tiny_folder, tmp_path, max_position_embeddings=2**30 // token)) == FLOAT32
    more = tmp_path / "more"
    more.mkdir()
    longer = linked(tiny_folder, more, max_position_embeddings=2**30 // token + 1)
    assert chosen(longer) == BFLOAT16


def test_any_other_machine_keeps_the_type_of_the_file(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dtypes, "halves_are_slow", lambda: False)
    assert chosen(tiny_folder) == BFLOAT16


def test_the_engine_is_made_with_it(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the engine core gets; it is not started here."""

    class Seen(Exception):
        pass

    def start(*, vllm_config: Any, **_: object) -> None:
        raise Seen(vllm_config.model_config.dtype)

    monkeypatch.setattr(core, "ObservedLLM", start)
    monkeypatch.setattr(core, "open_line", lambda _: None)
    settings = Settings(model=ModelSettings(source=str(tiny_folder), served_names=("tiny",)))
    with pytest.raises(Seen, match="float32"):
        core.create_llm(build_namespace(settings, str(tiny_folder), {}, on_cpu=True))


def test_what_is_slow_is_what_the_cpu_says() -> None:
    """AVX-512 is what oneDNN calculates 16 bits with."""
    from vllm.platforms import CpuArchEnum, current_platform

    if not current_platform.is_cpu() or current_platform.get_cpu_architecture() != CpuArchEnum.X86:
        pytest.skip("asks about x86 CPUs")
    flags = Path("/proc/cpuinfo").read_text().split()
    assert HALVES_ARE_SLOW() == ("avx512f" not in flags)
