"""Folders: which files are the model, what the small files say, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmserve.modelfile import (
    AttentionKind,
    Format,
    KvGroup,
    Malformed,
    ModelFile,
    ProblemKind,
    Refused,
    UnknownFormat,
    describe,
    detect,
    identity,
)
from tests.unit.modelfile.model_files import llama, safetensors

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "vocab_size": 100,
}


def folder(path: Path, config: dict[str, Any] | None = None, **files: Any) -> Path:
    """``files``: two underscores stand for a dot; bytes, text, or JSON."""
    path.mkdir(exist_ok=True)
    given = {"config__json": CONFIG | (config or {}), **files}
    for name, content in given.items():
        if not isinstance(content, bytes | str):
            content = json.dumps(content)
        data = content.encode() if isinstance(content, str) else content
        (path / name.replace("__", ".")).write_bytes(data)
    return path


WEIGHTS = safetensors({"a.weight": ("BF16", (4, 4))}, {"format": "pt"})


def single(path: Path, config: dict[str, Any] | None = None, **files: Any) -> ModelFile:
    return describe(folder(path, config, model__safetensors=WEIGHTS, **files))


def shards(path: Path, index: dict[str, str], **files: bytes) -> Path:
    folder(path, None, **{"model__safetensors__index__json": {"weight_map": index}, **files})
    return path


def one(name: str) -> bytes:
    return safetensors({name: ("F32", (2,))})


def test_shards_with_an_index(tmp_path: Path) -> None:
    shards(tmp_path, {"a": "1.safetensors", "b": "2.safetensors"})
    (tmp_path / "1.safetensors").write_bytes(one("a"))
    (tmp_path / "2.safetensors").write_bytes(one("b"))
    (tmp_path / "stray.safetensors").write_bytes(one("c"))
    found = describe(tmp_path)
    assert [each.name for each in found.files] == ["1.safetensors", "2.safetensors"]
    assert found.problems == ()
    assert found.dimensions.layers == 4
    before = found.fingerprint
    (tmp_path / "2.safetensors").write_bytes(safetensors({"b": ("F32", (2,))}, {"x": "y"}))
    assert describe(tmp_path).fingerprint != before


def test_an_index_that_is_wrong_is_told(tmp_path: Path) -> None:
    index = {"a": "2.safetensors", "b": "2.safetensors", "d": "1.safetensors", "e": "3.safetensors"}
    shards(tmp_path, index)
    (tmp_path / "1.safetensors").write_bytes(one("a"))
    (tmp_path / "2.safetensors").write_bytes(safetensors({"b": ("F32", ()), "c": ("F32", ())}))
    told = {each.where: each.detail for each in describe(tmp_path).problems}
    assert "missing" in told["3.safetensors"]
    assert "1.safetensors" in told["2.safetensors: 'a'"]
    assert "no file" in told["1.safetensors: 'd'"]
    assert "does not name it" in told["2.safetensors: 'c'"]
    (tmp_path / "2.safetensors").write_bytes(safetensors({"b": ("F32", ()), "a": ("F32", ())}))
    assert any("as well" in each.detail for each in describe(tmp_path).problems)


def test_shards_without_an_index(tmp_path: Path) -> None:
    folder(tmp_path)
    for part in (1, 2):
        (tmp_path / f"model-{part:05d}-of-00002.safetensors").write_bytes(one(f"t{part}"))
    found = describe(tmp_path)
    assert len(found.files) == 2
    assert [each.kind for each in found.problems] == [ProblemKind.INDEX]


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "/etc/passwd", "..", "", "a/b", "a\\b", "a\0b"]
)
def test_an_index_cannot_leave_the_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "outside.safetensors").write_bytes(one("a"))
    inner = shards(tmp_path / "inner", {"a": name})
    with pytest.raises(Malformed, match="names of files in this folder"):
        describe(inner)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{}",
        b'{"weight_map":',
        b'{"weight_map":{"a":1}}',
        b'{"weight_map":{"a":{}}}',
        b'{"weight_map":{"a":"f","a":"f"}}',
        b'{"weight_map":{"\xff":"f"}}',
        b'{"weight_map":{"a":"gone.safetensors"}}',
        b'{"weight_map":' + b"[" * 100_000,
        b'{"x":' + b'{"y":' * 100_000,
        b'{"weight_map":{"a":"f"}',
    ],
)
def test_a_malformed_index(tmp_path: Path, text: bytes) -> None:
    folder(tmp_path, model__safetensors__index__json=text)
    with pytest.raises(Malformed):
        describe(tmp_path)


@pytest.mark.parametrize(
    "text",
    [b"", b"[1]", b"{", b"\xff", b"[" * 100_000, b'{"a":' + b"9" * 5000 + b"}", b"x" * 3_000_000],
)
def test_a_malformed_configuration_does_not_hide_the_weights(tmp_path: Path, text: bytes) -> None:
    found = single(tmp_path, config__json=text)
    assert [each.kind for each in found.problems] == [ProblemKind.METADATA]
    assert found.parameters.total == 16
    assert found.architecture is None


def test_what_the_small_files_say(tmp_path: Path) -> None:
    found = single(
        tmp_path,
        {"eos_token_id": [7, 8], "auto_map": {"AutoModel": "code.Model"}},
        tokenizer_config__json={
            "tokenizer_class": "LlamaTokenizerFast",
            "bos_token": {"content": "<s>"},
            "pad_token": None,
            "add_bos_token": True,
            "added_tokens_decoder": {"1": {"content": "<s>"}, "7": {"content": "</s>"}, "x": 1},
            "chat_template": [{"name": "tool_use", "template": "{{ x }}"}, 5],
        },
        code__py="raise SystemExit",
        README__md="---\nlicense: mit\n---\n# Model",
    )
    assert found.tokenizer is not None
    assert found.tokenizer.special == {"bos": (1, "<s>"), "eos": (7, "</s>")}
    assert found.tokenizer.add_bos is True
    assert [each.name for each in found.chat_templates] == ["tool_use"]
    assert found.custom_code == ("code.py",)
    assert ProblemKind.CODE in [each.kind for each in found.problems]
    assert found.licence == "mit"
    assert found.metadata["config.auto_map.AutoModel"] == "code.Model"
    found = single(tmp_path, chat_template__jinja="{{ messages }}")
    assert [each.text for each in found.chat_templates] == ["{{ messages }}"]


def groups(path: Path, **config: Any) -> dict[int | None, int]:
    found = single(path, config)
    assert found.attention is not None
    return {group.window: group.layers for group in found.attention.kv}


def test_attention_of_known_families(tmp_path: Path) -> None:
    assert groups(tmp_path) == {None: 4}
    assert groups(tmp_path, model_type="mistral", sliding_window=32) == {32: 4}
    assert groups(tmp_path, model_type="gemma2", sliding_window=32) == {32: 2, None: 2}
    qwen = {"use_sliding_window": False, "sliding_window": 32, "max_window_layers": 1}
    assert groups(tmp_path, **qwen) == {None: 4}
    assert groups(tmp_path, **qwen | {"use_sliding_window": True}) == {None: 1, 32: 3}
    kinds = ["linear_attention", "full_attention", "sliding_attention", "full_attention"]
    assert groups(tmp_path, layer_types=kinds, sliding_window=9) == {None: 2, 9: 1}


def test_latent_attention_and_experts(tmp_path: Path) -> None:
    config = {
        "model_type": "deepseek_v3",
        "kv_lora_rank": 512,
        "qk_rope_head_dim": 64,
        "qk_nope_head_dim": 128,
        "v_head_dim": 128,
        "n_routed_experts": 4,
        "num_experts_per_tok": 1,
        "n_shared_experts": 1,
        "rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096},
    }
    tensors = {f"layers.0.mlp.experts.{index}.up.weight": ("BF16", (4, 4)) for index in range(4)}
    tensors |= {"layers.0.mlp.shared_experts.up.weight": ("BF16", (4, 4))}
    folder(tmp_path, config, model__safetensors=safetensors(tensors))
    found = describe(tmp_path)
    assert found.attention is not None
    assert found.attention.kind is AttentionKind.MLA
    assert found.attention.kv == (KvGroup(4, 1, 576, 0),)
    assert (found.parameters.total, found.parameters.active) == (80, 32)
    assert found.rope is not None
    assert (found.rope.scaling, found.rope.factor) == ("yarn", 40.0)


def test_language_model_inside_a_multimodal_one(tmp_path: Path) -> None:
    outer = {"model_type": "llava", "architectures": ["Llava"], "text_config": CONFIG}
    folder(tmp_path, model__safetensors=WEIGHTS)
    (tmp_path / "config.json").write_text(json.dumps(outer))
    found = describe(tmp_path)
    assert (found.family, found.architecture, found.dimensions.layers) == ("llava", "Llava", 4)


def test_packed_weights_are_counted_unpacked(tmp_path: Path) -> None:
    tensors = {
        "q.qweight": ("I32", (8, 64)),
        "q.qzeros": ("I32", (1, 8)),
        "q.scales": ("F16", (1, 64)),
        "q.g_idx": ("I32", (64,)),
        "norm.weight": ("BF16", (64,)),
    }
    config = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    folder(tmp_path, config, model__safetensors=safetensors(tensors))
    found = describe(tmp_path)
    assert found.parameters.total == 64 * 64 + 64
    assert (found.quantization.label, found.quantization.method) == ("gptq 4-bit", "gptq")


def test_configurations_of_nonsense(tmp_path: Path) -> None:
    values = [None, True, -1, 0, 1.5, "8", [], {}, 2**70, [[]], {"a": {}}]
    keys = [*CONFIG, "layer_types", "rope_scaling", "quantization_config", "num_experts"]
    keys += ["sliding_window", "text_config", "head_dim", "auto_map", "bos_token_id"]
    for key in keys:
        for value in values:
            assert single(tmp_path, {key: value}).parameters.total == 16, (key, value)


def test_folders_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(UnknownFormat):
        describe(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02}.")
    with pytest.raises(Refused, match="executes"):
        describe(tmp_path)
    assert detect(tmp_path).format is Format.PICKLE


def test_folders_of_gguf_files(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(llama().build())
    (tmp_path / "mmproj-a.gguf").write_bytes(llama().build())
    assert describe(tmp_path).files[0].name == "a.gguf"
    (tmp_path / "b.gguf").write_bytes(llama().build())
    with pytest.raises(Refused, match="several models"):
        describe(tmp_path)


def test_names_from_the_hugging_face_cache(tmp_path: Path) -> None:
    path = tmp_path / "models--org--name" / "snapshots" / "abc"
    path.parent.mkdir(parents=True)
    assert single(path).name == "org/name"


def test_identity_changes_with_any_file(tmp_path: Path) -> None:
    single(tmp_path)
    before = identity(tmp_path)
    assert identity(tmp_path) == before
    (tmp_path / "config.json").write_text("{}")
    assert identity(tmp_path) != before
