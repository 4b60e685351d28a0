"""What we read is what the reference readers read, on real files and on theirs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGUFEndian, GGUFReader, GGUFWriter, LlamaFileType
from safetensors import safe_open
from safetensors.numpy import save_file

from llmserve.modelfile import ArraySummary, Format, ModelFile, describe
from llmserve.modelfile.ggml import FILE_TYPES, TYPES
from tests.models import ADAPTER_RANK, tiny_adapter


def agree_with_gguf(path: Path, found: ModelFile) -> None:
    reader = GGUFReader(str(path))
    keys = {name: each for name, each in reader.fields.items() if not name.startswith("GGUF.")}
    assert list(found.metadata) == list(keys)
    for name, each in keys.items():
        ours, theirs = found.metadata[name], each.contents()
        if isinstance(ours, ArraySummary):
            assert ours.length == len(theirs)
            assert list(ours.first) == list(theirs[: len(ours.first)])
        else:
            assert ours == theirs, name
    assert [
        (each.name, each.shape, each.dtype, each.bytes, each.offset) for each in found.tensors
    ] == [
        (
            each.name,
            tuple(int(size) for size in reversed(each.shape)),
            each.tensor_type.name,
            int(each.n_bytes),
            int(each.data_offset),
        )
        for each in reader.tensors
    ]


def agree_with_safetensors(path: Path, found: ModelFile) -> None:
    with safe_open(str(path), "np") as theirs:
        assert {each.name for each in found.tensors} == set(theirs.keys())
        for each in found.tensors:
            part = theirs.get_slice(each.name)
            assert list(each.shape) == part.get_shape()
            assert each.dtype == part.get_dtype()
        for key, value in (theirs.metadata() or {}).items():
            assert found.metadata[key] == value


def test_demo_gguf(demo_file: Path) -> None:
    found = describe(demo_file)
    agree_with_gguf(demo_file, found)
    assert found.format is Format.GGUF
    assert found.version == "3"
    assert found.mapped
    assert found.problems == ()
    assert found.licence == "apache-2.0"
    assert found.parameters.total == found.parameters.active == 134_515_008
    assert found.quantization.label == "Q4_1"
    assert found.tokenizer is not None
    assert found.tokenizer.tokens == 49_152
    assert found.tokenizer.special["eos"] == (2, "<|im_end|>")
    assert found.chat_templates[0].warnings == ()


def test_every_string_of_the_demo_vocabulary_can_be_reached(demo_file: Path) -> None:
    from llmserve.modelfile.gguf import GgufArray, read_gguf
    from llmserve.modelfile.local import LocalStore

    source = LocalStore(demo_file.parent).open(demo_file.name)
    header = read_gguf(source)
    array = header.metadata["tokenizer.ggml.tokens"]
    assert isinstance(array, GgufArray)
    theirs = GGUFReader(str(demo_file)).fields["tokenizer.ggml.tokens"].contents()
    for index in [*range(0, 49_152, 97), 255, 256, 257, 49_151]:
        assert header.string(array, index) == theirs[index]
    assert header.string(array, 49_152) is None
    source.close()


def test_demo_folder_agrees_with_the_file_it_was_made_from(
    demo_file: Path, demo_folder: Path
) -> None:
    found, origin = describe(demo_folder), describe(demo_file)
    agree_with_safetensors(demo_folder / "model.safetensors", found)
    assert found.problems == ()
    assert found.architecture == "LlamaForCausalLM"
    assert found.parameters == origin.parameters
    assert found.dimensions == origin.dimensions
    assert found.attention == origin.attention
    assert found.chat_templates == origin.chat_templates
    assert found.tokenizer is not None
    assert origin.tokenizer is not None
    assert found.tokenizer.special == origin.tokenizer.special
    assert found.fingerprint != origin.fingerprint


def test_minilm(minilm_folder: Path) -> None:
    found = describe(minilm_folder)
    agree_with_safetensors(minilm_folder / "model.safetensors", found)
    assert found.architecture == "BertModel"
    assert found.attention is not None
    assert not found.attention.causal
    assert found.parameters.total == 22_713_216
    assert found.licence == "apache-2.0"
    assert found.tokenizer is not None
    assert found.tokenizer.special["cls"] == (101, "[CLS]")
    assert found.problems == ()


def test_lora_adapter(tiny_folder: Path, tmp_path: Path) -> None:
    found = describe(tiny_adapter(tiny_folder, tmp_path / "adapter"))
    agree_with_safetensors(tmp_path / "adapter" / "adapter_model.safetensors", found)
    assert found.kind == "adapter"
    assert found.adapter is not None
    assert found.adapter.type == "lora"
    assert found.adapter.rank == ADAPTER_RANK
    assert found.adapter.alpha == 2 * ADAPTER_RANK
    assert found.adapter.target_modules == ("q_proj",)
    assert found.adapter.base_model == str(tiny_folder)


@pytest.mark.parametrize("endian", list(GGUFEndian))
def test_files_of_the_reference_writer(tmp_path: Path, endian: GGUFEndian) -> None:
    path = tmp_path / "made.gguf"
    writer = GGUFWriter(path, "llama", endianess=endian)
    writer.add_name("Gemacht für Prüfungen 🦙")
    writer.add_block_count(3)
    writer.add_head_count_kv([1, 2, 3])
    writer.add_float64("x.f64", 1 / 3)
    writer.add_int64("x.i64", -(2**60))
    writer.add_uint8("x.u8", 255)
    writer.add_int16("x.i16", -2)
    writer.add_bool("x.bool", True)
    writer.add_array("x.floats", [0.5, -1.5])
    writer.add_array("x.bools", [True, False])
    lengths = [0, 1, 62, 63, 64, 65, 255, 256, 257, 300, 65_536]
    words = ["w" * (index % 40) for index in range(1500)] + ["é" * size for size in lengths]
    writer.add_token_list(words * 2)
    writer.add_tensor("a", np.ones((3, 4), dtype=np.float32))
    writer.add_tensor("b", np.ones((2, 3, 5), dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = describe(path)
    agree_with_gguf(path, found)
    assert found.problems == ()


def test_files_of_the_reference_safetensors_writer(tmp_path: Path) -> None:
    path = tmp_path / "made.safetensors"
    tensors = {
        'odd "name" \\ with\nnew lines é🦙': np.zeros((2, 0, 3), dtype=np.float64),
        "scalar": np.array(1, dtype=np.int8),
        "flags": np.zeros(5, dtype=np.bool_),
    }
    save_file(tensors, path, metadata={"key": 'va"lue\\', "": "empty"})
    found = describe(path)
    agree_with_safetensors(path, found)
    assert found.problems == ()


def test_tables_of_types_are_those_of_gguf() -> None:
    theirs = {int(kind): (kind.name, *sizes) for kind, sizes in GGML_QUANT_SIZES.items()}
    assert theirs == TYPES
    names = {
        each.value: each.name.removeprefix("MOSTLY_").removeprefix("ALL_")
        for each in LlamaFileType
        if each is not LlamaFileType.GUESSED
    }
    assert names == FILE_TYPES
