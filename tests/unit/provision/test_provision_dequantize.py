"""A conversion that goes on where it was interrupted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from gguf_files import write_gguf

from llmserve.provision import dequantize
from llmserve.provision.dequantize import open_stream, write_shards


def load(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return {k: v for path in folder.glob("*.safetensors") for k, v in load_file(path).items()}


def test_shards_hold_what_one_file_would(
    tmp_path: Path, converted: Path, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = open_stream(tiny_gguf, "llama")
    assert stream is not None
    monkeypatch.setattr(dequantize, "SHARD_BYTES", 10_000)
    seen: list[float] = []
    write_shards(stream, tmp_path, seen.append)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(index.values())) > 2
    one, many = load(converted), load(tmp_path)
    assert set(one) == set(many) == set(index)
    assert all((one[name] == many[name]).all() for name in one)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


def test_it_goes_on_behind_the_last_shard(
    tmp_path: Path, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = open_stream(tiny_gguf, "llama")
    assert stream is not None
    monkeypatch.setattr(dequantize, "SHARD_BYTES", 10_000)
    write, written = dequantize._write_shard, list[str]()

    def interrupted(*args: Any) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(args[3].name)
        write(*args)

    monkeypatch.setattr(dequantize, "_write_shard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_shards(stream, tmp_path, lambda _: None)
    times = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}
    assert set(times) == set(written)
    monkeypatch.setattr(dequantize, "_write_shard", write)
    write_shards(stream, tmp_path, lambda _: None)
    assert all((tmp_path / name).stat().st_mtime_ns == at for name, at in times.items())
    assert len(load(tmp_path)) == 12
    assert not (tmp_path / dequantize.PLAN).exists()


def test_experts_are_left_to_transformers(tmp_path: Path) -> None:
    assert open_stream(write_gguf(tmp_path / "x.gguf"), "qwen2moe") is None
