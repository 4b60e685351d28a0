"""GGUF: what follows from the keys, and layouts that are wrong but readable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmserve.modelfile import AttentionKind, KvGroup, ModelFile, ProblemKind, describe
from tests.unit.modelfile.conftest import Described
from tests.unit.modelfile.model_files import Gguf, llama, llama_keys, llama_tensors


def kinds(found: ModelFile) -> list[ProblemKind]:
    return [each.kind for each in found.problems]


def keys_of(family: str, **more: tuple[str, Any]) -> dict[str, tuple[str, Any]]:
    renamed = {key.replace("llama.", f"{family}."): value for key, value in llama_keys().items()}
    renamed["general.architecture"] = ("str", family)
    return renamed | {f"{family}.{key.replace('__', '.')}": value for key, value in more.items()}


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("order", ["<", ">"])
def test_versions_and_byte_orders(described: Described, version: int, order: str) -> None:
    found = described(llama(version=version, order=order).build())
    assert found.version == f"{version}{' (big-endian)' if order == '>' else ''}"
    assert found.problems == ()
    assert found.name == "Tiny"
    assert found.tokenizer is not None
    assert found.tokenizer.special["eos"] == (601, "t599")
    assert found.tokenizer.add_bos is True
    assert found.tensors[3].dtype == "Q4_1"
    assert found.tensors[0].shape == (602, 64)
    assert not found.mapped
    assert found.attention is not None
    assert found.attention.kind is AttentionKind.GQA
    assert found.attention.kv == (KvGroup(2, 2, 8, 8),)


def test_experts_and_what_of_them_is_active(described: Described) -> None:
    keys = keys_of("qwen3moe", expert_count=("u32", 8), expert_used_count=("u32", 2))
    tensors = {
        "blk.0.ffn_gate_inp.weight": ((64, 8), 0, 2048),
        "blk.0.ffn_up_exps.weight": ((64, 16, 8), 0, 4 * 64 * 16 * 8),
    }
    found = described(Gguf(keys=keys, tensors=tensors).build())
    assert found.experts is not None
    assert (found.experts.total, found.experts.active) == (8, 2)
    assert found.parameters.total == 512 + 8192
    assert found.parameters.active == 512 + 2048


def test_latent_attention(described: Described) -> None:
    keys = keys_of(
        "deepseek2",
        attention__kv_lora_rank=("u32", 512),
        attention__head_count_kv=("u32", 1),
        attention__key_length=("u32", 576),
        attention__key_length_mla=("u32", 192),
        rope__dimension_count=("u32", 64),
    )
    found = described(Gguf(keys=keys).build())
    assert found.attention is not None
    assert found.attention.kind is AttentionKind.MLA
    assert found.attention.kv == (KvGroup(2, 1, 576, 0),)


@pytest.mark.parametrize(
    ("family", "more", "expected"),
    [
        ("gemma3", {}, {512: 10, None: 2}),
        ("llama", {}, {None: 12}),
        ("gemma3", {"attention__sliding_window_pattern": ("u32", 3)}, {512: 8, None: 4}),
        (
            "gpt-oss",
            {"attention__sliding_window_pattern": ("[bool]", [1, 0, 0] * 4)},
            {512: 4, None: 8},
        ),
    ],
)
def test_sliding_windows(
    described: Described, family: str, more: dict[str, Any], expected: dict[int | None, int]
) -> None:
    window = {"attention__sliding_window": ("u32", 512), "block_count": ("u32", 12)}
    found = described(Gguf(keys=keys_of(family, **window, **more)).build())
    assert found.attention is not None
    assert {group.window: group.layers for group in found.attention.kv} == expected


def test_layers_without_a_cache(described: Described) -> None:
    mixed = {"attention__head_count_kv": ("[u32]", [0, 4, 0, 2]), "block_count": ("u32", 4)}
    found = described(Gguf(keys=keys_of("jamba", **mixed)).build())
    assert found.attention is not None
    assert found.attention.recurrent_layers == 2
    assert set(found.attention.kv) == {KvGroup(1, 4, 8, 8), KvGroup(1, 2, 8, 8)}
    found = described(Gguf(keys=keys_of("mamba")).build())
    assert found.attention is not None
    assert found.attention.kind is AttentionKind.NONE


def test_adapter(described: Described) -> None:
    keys = {
        "general.architecture": ("str", "llama"),
        "general.type": ("str", "adapter"),
        "adapter.type": ("str", "lora"),
        "adapter.lora.alpha": ("f32", 32.0),
    }
    tensors = {"blk.0.attn_q.weight.lora_a": ((64, 16), 0, 4096)}
    found = described(Gguf(keys=keys, tensors=tensors).build())
    assert found.kind == "adapter"
    assert found.adapter is not None
    assert (found.adapter.rank, found.adapter.alpha) == (16, 32.0)
    assert found.adapter.target_modules == ("attn_q",)


def test_parts_of_a_split_model(tmp_path: Path) -> None:
    for part, (name, tensor) in enumerate(list(llama_tensors().items())[:3]):
        keys = {"split.no": ("u16", part), "split.count": ("u16", 3)}
        data = Gguf(keys=(llama_keys() if part == 0 else {}) | keys, tensors={name: tensor})
        (tmp_path / f"m-{part + 1:05d}-of-00003.gguf").write_bytes(data.build())
    for path in (tmp_path / "m-00001-of-00003.gguf", tmp_path / "m-00003-of-00003.gguf", tmp_path):
        found = describe(path)
        assert len(found.files) == len(found.tensors) == 3
        assert found.name == "Tiny"
        assert found.problems == ()
    (tmp_path / "m-00002-of-00003.gguf").unlink()
    found = describe(tmp_path)
    assert [(each.kind, each.where) for each in found.problems] == [
        (ProblemKind.MISSING, "m-00002-of-00003.gguf")
    ]
    (tmp_path / "m-00001-of-00003.gguf").rename(tmp_path / "alone.gguf")
    assert ProblemKind.INDEX in kinds(describe(tmp_path / "alone.gguf"))


def test_truncated_data_is_told_and_not_fatal(described: Described) -> None:
    found = described(llama().build()[:-8000])
    assert ProblemKind.TRUNCATED in kinds(found)
    assert len(found.tensors) == 4


def test_overlaps_gaps_and_misaligned_offsets(described: Described) -> None:
    found = described(llama(offsets={"norm.weight": 32}).build())
    assert kinds(found) == [ProblemKind.OVERLAP, ProblemKind.GAP]
    found = described(llama(offsets={"norm.weight": 170_497}).build())
    assert ProblemKind.MISALIGNED in kinds(found)
    found = described(llama().build() + bytes(100))
    assert kinds(found) == [ProblemKind.GAP]


def test_problems_without_end_are_shortened(described: Described) -> None:
    tensors = {f"t{index}": ((8,), 0, 32) for index in range(500)}
    found = described(Gguf(tensors=tensors, offsets=dict.fromkeys(tensors, 0)).build())
    assert len(found.problems) < 50
    assert "more problems" in found.problems[-1].detail


def test_empty_tensors_and_tensors_without_dimensions_are_valid(described: Described) -> None:
    tensors = {"none": ((0, 5), 0, 0), "one": ((), 0, 4), "after": ((4,), 0, 16)}
    found = described(Gguf(keys=llama_keys(), tensors=tensors).build())
    assert [each.bytes for each in found.tensors] == [0, 4, 16]
    assert found.problems == ()


def test_texts_that_are_not_utf8_are_shown_escaped(described: Described) -> None:
    keys = llama_keys(general__name=("str", b"caf\xe9"))
    found = described(Gguf(keys=keys).build())
    assert found.name == "caf\\xe9"
    assert kinds(found) == [ProblemKind.METADATA]


def test_values_that_make_no_sense_are_left_out(described: Described) -> None:
    keys = keys_of(
        "llama",
        block_count=("str", "many"),
        attention__head_count=("u32", 0),
        rope__freq_base=("f32", float("nan")),
        context_length=("i64", -5),
    )
    found = described(Gguf(keys=keys | {"tokenizer.ggml.eos_token_id": ("u32", 2**32 - 1)}).build())
    assert found.dimensions.layers is None
    assert found.dimensions.context_length is None
    assert found.attention is None
    assert found.rope is None
    assert found.metadata["llama.rope.freq_base"] == "nan"
    assert found.tokenizer is not None
    assert "eos" not in found.tokenizer.special


@pytest.mark.parametrize(
    ("text", "warned"),
    [
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", True),
        ("{% include 'other' %}", True),
        ("{{ cycler.__init__.__globals__.os.popen('id') }}", True),
        ("{{ x|attr('y') }}", True),
        ("You may open (the) os. Visit https://example.org", False),
        ("{% for m in messages %}{{ m['content'] | trim }}{% endfor %}", False),
    ],
)
def test_templates_are_read_and_never_run(described: Described, text: str, warned: bool) -> None:
    keys = llama_keys(tokenizer__chat_template=("str", text))
    found = described(Gguf(keys=keys).build())
    assert found.chat_templates[0].text == text
    assert bool(found.chat_templates[0].warnings) is warned
