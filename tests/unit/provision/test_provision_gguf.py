"""Conversion of a GGUF file, by the real process, checked against the file."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from gguf_files import TEMPLATE, byte_alphabet, write_gguf

from llmserve.errors import SetupError
from llmserve.provision.cache import current_umask
from llmserve.provision.gguf import convert_gguf
from llmserve.provision.resolve import resolve_model


def load(folder: Path, name: str) -> dict[str, object]:
    return json.loads((folder / name).read_text(encoding="utf-8"))


def test_config_says_what_the_file_says(converted: Path) -> None:
    config = load(converted, "config.json")
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert "quantization_config" not in config
    assert config["vocab_size"] == 264
    assert config["max_position_embeddings"] == 512
    assert (config["bos_token_id"], config["eos_token_id"]) == (0, [1, 3])
    assert config["rope_parameters"] == {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


def test_answers_end_and_are_sampled_as_the_file_says(converted: Path) -> None:
    assert load(converted, "generation_config.json") == {
        "bos_token_id": 0,
        "eos_token_id": [1, 3],
        "pad_token_id": 4,
        "temperature": 0.5,
        "do_sample": True,
    }


def test_tokenizer_keeps_bos_whole_words_and_special_tokens(converted: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(converted / "tokenizer.json"))
    alphabet = byte_alphabet()
    letter = {text: 5 + alphabet.index(text) for text in "abcx"}
    assert tokenizer.encode("ab").ids == [0, 261]
    assert tokenizer.encode("abc").ids == [0, 262]
    assert tokenizer.encode("abx").ids == [0, 261, letter["x"]]
    assert tokenizer.encode("<|im_start|>a<|eot|>").ids == [0, 2, letter["a"], 3]
    assert tokenizer.encode("<think>", add_special_tokens=False).ids == [263]
    added = tokenizer.get_added_tokens_decoder()
    assert added[3].special
    assert not added[263].special


def test_chat_template_is_the_same_text(converted: Path) -> None:
    assert (converted / "chat_template.jinja").read_text(encoding="utf-8") == TEMPLATE


def test_files_follow_the_umask(converted: Path) -> None:
    for path in converted.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~current_umask(), path


def test_weights_are_the_same_numbers(converted: Path, tiny_gguf: Path) -> None:
    from gguf import GGUFReader
    from safetensors import safe_open

    original = {each.name: each.data for each in GGUFReader(str(tiny_gguf)).tensors}
    with safe_open(converted / "model.safetensors", "pt") as file:
        embedding = file.get_tensor("model.embed_tokens.weight").float().numpy()
        head = file.get_tensor("lm_head.weight").float().numpy()
    # bfloat16 keeps eight bits of each number.
    np.testing.assert_allclose(embedding, original["token_embd.weight"], rtol=2**-8)
    np.testing.assert_allclose(head, original["output.weight"], rtol=2**-8)


def test_second_time_is_found_without_work(
    converted: Path, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmserve.provision.gguf._convert", None)
    assert convert_gguf(tiny_gguf, converted.parent.parent) == converted


def test_unknown_architecture_is_named(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "odd.gguf", architecture="nonesuch")
    with pytest.raises(SetupError, match="'nonesuch'") as caught:
        convert_gguf(file, tmp_path / "cache")
    assert "SafeTensors repository" in caught.value.message
    assert list((tmp_path / "cache" / "models").iterdir()) == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"PK\x03\x04 a zip file", "does not begin with 'GGUF'"),
        (b"", "does not begin with 'GGUF'"),
        (b"GGUF\x00\x00\x00\x03", "big-endian"),
    ],
)
def test_other_files_are_refused_at_once(tmp_path: Path, content: bytes, reason: str) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(content)
    with pytest.raises(SetupError, match=reason):
        convert_gguf(file, tmp_path / "cache")


def test_cut_off_file_is_refused(tmp_path: Path, tiny_gguf: Path) -> None:
    file = tmp_path / "cut.gguf"
    file.write_bytes(tiny_gguf.read_bytes()[:40_000])
    with pytest.raises(SetupError, match="damaged or not complete"):
        convert_gguf(file, tmp_path / "cache")


def test_tokenizer_and_configuration_alone(tiny_gguf: Path, converted: Path) -> None:
    cache = converted.parent.parent
    folder = convert_gguf(tiny_gguf, cache, weights=False)
    assert folder != converted
    assert not list(folder.glob("*.safetensors"))
    for name in ("config.json", "tokenizer.json", "chat_template.jinja"):
        assert (folder / name).read_bytes() == (converted / name).read_bytes()


def test_a_file_is_served_as_it_is_where_that_is_possible(
    tiny_gguf: Path, converted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = converted.parent.parent
    # Without the plugin or a GPU it is converted, also when it need not be.
    assert resolve_model(str(tiny_gguf), cache=cache, native_gguf=True).path == str(converted)
    gpus = SimpleNamespace(gpus=("a GPU",))
    monkeypatch.setattr("llmserve.provision.hardware.look", lambda _: gpus)
    monkeypatch.setattr("importlib.metadata.version", lambda _: "0.0.5")
    found = resolve_model(str(tiny_gguf), cache=cache, native_gguf=True)
    assert found.path == str(tiny_gguf)
    assert Path(found.engine_defaults["tokenizer"], "tokenizer.json").is_file()
    assert found.engine_defaults["hf_config_path"] == found.engine_defaults["tokenizer"]
    assert resolve_model(str(tiny_gguf), cache=cache).path == str(converted)
