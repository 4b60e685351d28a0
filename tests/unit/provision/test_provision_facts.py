"""What is read out of GGUF metadata, and the defaults where a file is silent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmserve.provision.facts import (
    GgufFacts,
    chat_templates,
    generation_config,
    read_facts,
    repair_tokenizer,
)
from llmserve.provision.rope import Impossible, llama3_divisors, rope_parameters

TOKENS = ["<unk>", "<s>", "</s>", "a", "b"]


def facts(kind: str = "llama", **keys: Any) -> GgufFacts:
    metadata = {
        "general.architecture": "llama",
        "tokenizer.ggml.model": kind,
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "llama.context_length": 64,
        **{f"tokenizer.{key.replace('__', '.')}": value for key, value in keys.items()},
    }
    return GgufFacts(metadata, {})


@pytest.mark.parametrize(
    ("kind", "split", "says", "expected"),
    [
        ("llama", "default", None, True),
        ("llama", "default", False, False),
        ("gpt2", "smollm", None, False),
        ("gpt2", "llama-bpe", None, True),
        ("gpt2", "llama-bpe", False, False),
        ("gpt2", "qwen2", True, True),
    ],
)
def test_bos_follows_the_file_then_llama_cpp(
    kind: str, split: str, says: bool | None, expected: bool
) -> None:
    keys = {} if says is None else {"ggml__add_bos_token": says}
    assert facts(kind, ggml__pre=split, **keys).add_bos is expected


def test_ids_outside_the_vocabulary_mean_none() -> None:
    assert facts(ggml__padding_token_id=2**32 - 1).token_id("padding") is None
    assert facts(ggml__padding_token_id=-1).token_id("padding") is None
    assert facts(ggml__padding_token_id=4).token_id("padding") == 4


def test_every_end_token_ends_an_answer_once() -> None:
    assert facts(ggml__eot_token_id=4, ggml__eom_token_id=2).end_ids == [2, 4]
    assert generation_config(facts())["eos_token_id"] == [2]


def test_named_templates_get_their_own_files() -> None:
    found = chat_templates(facts(chat_template="main", **{"chat_template__tool_use": "tools"}))
    assert found == {
        "chat_template.jinja": "main",
        "additional_chat_templates/tool_use.jinja": "tools",
    }


def tokenizer_folder(folder: Path) -> Path:
    content = {
        "added_tokens": [{"id": 1, "content": "<s>"}, {"id": 5, "content": "<|endoftext|>"}],
        "pre_tokenizer": {"type": "ByteLevel"},
        "post_processor": None,
        "model": {"type": "BPE", "ignore_merges": False},
    }
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "wrong"}))
    return folder


def repaired(folder: Path, of: GgufFacts) -> tuple[dict[str, Any], dict[str, Any]]:
    repair_tokenizer(tokenizer_folder(folder), of)
    read = (folder / "tokenizer.json", folder / "tokenizer_config.json")
    return tuple(json.loads(path.read_text()) for path in read)  # type: ignore[return-value]


def test_digits_are_split_where_the_model_learned_them_so(tmp_path: Path) -> None:
    tokenizer, config = repaired(tmp_path, facts("gpt2", ggml__pre="smollm"))
    steps = [each["type"] for each in tokenizer["pre_tokenizer"]["pretokenizers"]]
    assert steps == ["Digits", "ByteLevel"]
    assert tokenizer["model"]["ignore_merges"] is False
    assert (config["bos_token"], config["add_bos_token"]) == ("<s>", False)


def test_tokens_without_a_row_in_the_model_are_dropped(tmp_path: Path) -> None:
    tokenizer, _ = repaired(tmp_path, facts("gpt2", ggml__pre="smollm"))
    assert [each["id"] for each in tokenizer["added_tokens"]] == [1]


def test_bos_and_eos_are_put_around_a_text(tmp_path: Path) -> None:
    tokenizer, config = repaired(
        tmp_path, facts("llama", ggml__add_bos_token=True, ggml__add_eos_token=True)
    )
    single = tokenizer["post_processor"]["single"]
    assert [next(iter(each)) for each in single] == ["SpecialToken", "Sequence", "SpecialToken"]
    assert tokenizer["post_processor"]["special_tokens"]["</s>"]["ids"] == [2]
    assert (config["add_bos_token"], config["add_eos_token"]) == (True, True)


def test_unknown_split_is_noted(tmp_path: Path) -> None:
    odd = facts("gpt2", ggml__pre="from-the-future")
    repaired(tmp_path, odd)
    assert "from-the-future" in odd.notes[0]


def test_split_files_and_adapters_are_refused(tmp_path: Path) -> None:
    import gguf

    for name, change in (
        ("adapter", lambda writer: writer.add_string("general.type", "adapter")),
        ("split", lambda writer: writer.add_uint16("split.count", 3)),
        ("tokenizer", lambda _: None),
    ):
        path = tmp_path / f"{name}.gguf"
        writer = gguf.GGUFWriter(str(path), "llama")
        change(writer)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with pytest.raises(Impossible, match=name):
            read_facts(path)


def test_rope_of_llama3_is_recognized() -> None:
    freqs = llama3_divisors(500_000.0, 64, 32.0)
    assert freqs[0] == 1.0
    assert freqs[-1] == 32.0
    assert sorted(freqs) == freqs
    metadata = {"llama.rope.freq_base": 500_000.0}
    found = rope_parameters("llama", metadata, freqs)
    assert (found["rope_type"], found["factor"]) == ("llama3", 32.0)


def test_rope_of_an_unknown_table_is_refused() -> None:
    with pytest.raises(Impossible, match="rope_freqs"):
        rope_parameters("llama", {}, [1.0, 2.0, 3.0, 4.0])


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({}, {}),
        ({"rope.scaling.type": "none"}, {}),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 1.0}, {}),
        (
            {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
            {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0},
        ),
        (
            {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": 4.0,
                "rope.scaling.original_context_length": 32768,
            },
            {
                "rope_type": "yarn",
                "rope_theta": 10_000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 32768,
            },
        ),
    ],
)
def test_rope_scaling_is_carried_over(metadata: dict[str, Any], expected: dict[str, Any]) -> None:
    keys = {f"qwen2.{key}": value for key, value in metadata.items()}
    assert rope_parameters("qwen2", keys, ()) == expected


def test_rope_scaling_that_cannot_be_said_is_refused() -> None:
    keys = {"phi3.rope.scaling.type": "longrope", "phi3.rope.scaling.factor": 32.0}
    with pytest.raises(Impossible, match="longrope"):
        rope_parameters("phi3", keys, ())
