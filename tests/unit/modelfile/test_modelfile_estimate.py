"""What serving takes. ``tests/e2e/test_model_files.py`` compares with vLLM's own figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmserve.modelfile import Ask, Dtype, ModelFile, describe, estimate, parse_bytes, refusal
from llmserve.modelfile.estimate import Estimate
from llmserve.modelfile.memory import loaded_bytes
from tests.unit.modelfile.model_files import (
    Gguf,
    apr2,
    llama,
    llama_keys,
    raw_safetensors,
    safetensors,
)

GIB = 2**30
HIDDEN, LAYERS, VOCABULARY = 4096, 32, 128_256
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": 14_336,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131_072,
    "vocab_size": VOCABULARY,
}


def large(folder: Path, **config: object) -> ModelFile:
    """The headers of a llama of 8 billion weights, over a hole."""
    matrices = {
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (1024, HIDDEN),
        "self_attn.v_proj": (1024, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "mlp.gate_proj": (14_336, HIDDEN),
        "mlp.up_proj": (14_336, HIDDEN),
        "mlp.down_proj": (HIDDEN, 14_336),
    }
    tensors = {
        f"model.layers.{layer}.{name}.weight": ("BF16", shape)
        for layer in range(LAYERS)
        for name, shape in matrices.items()
    }
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = ("BF16", (VOCABULARY, HIDDEN))
    header, offset = {}, 0
    for name, (dtype, (rows, columns)) in tensors.items():
        end = offset + 2 * rows * columns
        entry = {"dtype": dtype, "shape": [rows, columns], "data_offsets": [offset, end]}
        header[name], offset = entry, end
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    return describe(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFile:
    return large(tmp_path_factory.mktemp("large"))


def test_weights_at_each_dtype(model: ModelFile) -> None:
    whole, ends = model.parameters.total, 2 * VOCABULARY * HIDDEN
    found = estimate(model, Ask(80 * GIB)).weights
    assert found["BF16"] == 2 * whole
    assert found["F32"] == 4 * whole
    assert found["FP8"] == 2 * ends + (whole - ends)
    assert found["INT4"] == 2 * ends + (whole - ends) * 0.53125
    assert loaded_bytes(model, Dtype.BF16, devices=2) == whole


def test_cache_of_grouped_queries(model: ModelFile) -> None:
    found = estimate(model, Ask(80 * GIB, context=8192))
    assert found.kv_bytes_per_token == 2 * LAYERS * 8 * 128 * 2
    assert found.kv_bytes_per_sequence == 8192 * found.kv_bytes_per_token
    assert found.sequences == pytest.approx(found.cache_bytes / found.kv_bytes_per_sequence, 0.01)
    assert found.verdict.fits
    narrow = estimate(model, Ask(80 * GIB, context=8192, kv_bytes=1))
    assert narrow.kv_bytes_per_sequence * 2 == found.kv_bytes_per_sequence
    shared = estimate(model, Ask(80 * GIB, context=8192, tensor_parallel=4))
    assert shared.kv_bytes_per_sequence * 4 == found.kv_bytes_per_sequence
    # More devices than heads of keys and values: each has one.
    most = estimate(model, Ask(80 * GIB, context=8192, tensor_parallel=16))
    assert most.kv_bytes_per_sequence * 8 == found.kv_bytes_per_sequence
    # A block is taken as a whole.
    assert (
        estimate(model, Ask(80 * GIB, context=8193)).kv_bytes_per_sequence
        == (8192 + 16) * found.kv_bytes_per_token
    )


def check_nearest(model: ModelFile, found: Estimate) -> str:
    assert not found.verdict.fits
    assert found.verdict.nearest_ask is not None
    assert estimate(model, found.verdict.nearest_ask).verdict.fits
    assert found.verdict.nearest is not None
    return found.verdict.nearest


@pytest.mark.parametrize(
    ("ask", "reason", "nearest"),
    [
        (Ask(24 * GIB), "131,072 tokens need", "a context of"),
        (Ask(40 * GIB, sequences=2), "2 x 131,072 tokens", "8-bit KV cache"),
        (Ask(12 * GIB, context=4096), "do not fit", "2 devices"),
        (Ask(6 * GIB, context=4096), "do not fit", "8 devices"),
        (Ask(12 * 10**9, gpu=False, context=4096), "do not fit", "weights of 8 bits"),
        (Ask(GIB, context=4096), "do not fit", "of memory on each device"),
        (Ask(80 * GIB, tensor_parallel=3), "cannot be divided among 3", "devices like this one"),
        (Ask(80 * GIB, context=200_000), "131,072 tokens of context", "a context of 131,072"),
    ],
)
def test_what_does_not_fit_is_told_with_what_would(
    model: ModelFile, ask: Ask, reason: str, nearest: str
) -> None:
    found = estimate(model, ask)
    assert reason in found.verdict.reason
    assert nearest in check_nearest(model, found)


def test_the_longest_sequence_fits_and_no_longer_one(model: ModelFile) -> None:
    found = estimate(model, Ask(24 * GIB))
    assert found.longest is not None
    assert 0 < found.longest < 131_072
    assert estimate(model, Ask(24 * GIB, context=found.longest)).verdict.fits
    longer = found.longest // 16 * 16 + 17
    assert not estimate(model, Ask(24 * GIB, context=longer)).verdict.fits


def test_windows_bound_the_cache(tmp_path: Path) -> None:
    kinds = (["sliding_attention"] * 3 + ["full_attention"]) * 8
    found = large(tmp_path, layer_types=kinds, sliding_window=1024)
    short = estimate(found, Ask(80 * GIB, context=8192)).kv_bytes_per_sequence
    long = estimate(found, Ask(80 * GIB, context=131_072)).kv_bytes_per_sequence
    everything = LAYERS * 131_072 * 2 * 8 * 128 * 2
    assert short < long < everything / 2
    # Eight layers see everything; the others keep their window and what is in flight.
    block = 16 * 2 * 8 * 128 * 2
    windows = 24 * (-(-(1023 + 16_384) // 16) + 1) * block
    assert long == 8 * (131_072 // 16) * block + windows


def test_a_latent_cache_is_one_vector(tmp_path: Path) -> None:
    found = large(tmp_path, kv_lora_rank=512, qk_rope_head_dim=64, qk_nope_head_dim=128)
    one, four = (estimate(found, Ask(80 * GIB, tensor_parallel=n)) for n in (1, 4))
    assert one.kv_bytes_per_token == LAYERS * (512 + 64) * 2
    assert four.kv_bytes_per_token == one.kv_bytes_per_token


def test_a_tied_head_is_not_counted(tmp_path: Path, model: ModelFile) -> None:
    tied = large(tmp_path, tie_word_embeddings=True)
    less = loaded_bytes(model, Dtype.BF16) - loaded_bytes(tied, Dtype.BF16)
    assert less == 2 * VOCABULARY * HIDDEN


def test_packed_weights_stay_packed(tmp_path: Path) -> None:
    tensors = {
        "model.layers.0.mlp.up_proj.qweight": ("I32", (64, 128)),
        "model.layers.0.mlp.up_proj.scales": ("F16", (4, 128)),
        "model.embed_tokens.weight": ("F16", (640, 64)),
    }
    (tmp_path / "model.safetensors").write_bytes(safetensors(tensors))
    config = {**CONFIG, "quantization_config": {"quant_method": "gptq", "bits": 4}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = estimate(describe(tmp_path), Ask(GIB)).weights
    assert found == {"gptq": 4 * 64 * 128 + 2 * 4 * 128 + 2 * 640 * 64}


def test_a_gguf_is_counted_as_it_is_served(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(llama().build())
    found = describe(path)
    padded = (640 - 602) * 64
    assert loaded_bytes(found, Dtype.BF16) == 2 * (found.parameters.total + padded)


OVERLAPPING = json.dumps(
    {
        "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
    }
).encode()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (llama().build()[:-9000], "not complete"),
        (raw_safetensors(OVERLAPPING, 12), "'b': It begins at byte"),
        (apr2({"a": (0, (2,), 8)}), "vLLM cannot load APR"),
        (Gguf({"general.architecture": ("str", "clip")}).build(), "a projector"),
        (Gguf({**llama_keys(), "adapter.type": ("str", "lora")}).build(), "an adapter"),
        (Gguf(llama_keys()).build(), "no tensors"),
        (safetensors({"a": ("F32", (2,))}), "config.json"),
    ],
)
def test_what_cannot_be_served_at_all(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "model"
    path.write_bytes(data)
    found = describe(path)
    assert reason in (refusal(found) or "")
    verdict = estimate(found, Ask(80 * GIB)).verdict
    assert (verdict.fits, verdict.nearest) == (False, None)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("80GiB", 80 * GIB),
        ("24 GB", 24 * 10**9),
        ("1.5g", 1_500_000_000),
        ("512MiB", 2**29),
        ("7", 7),
        ("2TiB", 2**41),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1", "1e9", "1 PB", "1" * 30, "٣GB", "1.2.3"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="80GiB"):
        parse_bytes(text)
