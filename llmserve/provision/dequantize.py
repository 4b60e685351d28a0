"""Dequantizing a GGUF file tensor by tensor, into SafeTensors shards.

Memory holds one shard at a time, and a conversion that was interrupted goes on behind the
last shard it wrote. That is possible where each tensor of the file becomes one of the model;
mixtures of experts are loaded as a whole instead (see ``convert``). Names and layouts are
transformers' own (``modeling_gguf_pytorch_utils``).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmserve.provision.rope import Impossible

SHARD_BYTES = 2_000_000_000
PLAN = ".plan.json"
"""Kept beside the shards until they are complete: what they were made by."""

_ONE_TO_ONE = frozenset({"TensorProcessor", "LlamaTensorProcessor", "Gemma2TensorProcessor"})
_ONE_TO_ONE |= {"NemotronTensorProcessor"}


@dataclass(frozen=True, slots=True)
class Stream:
    """An open file, and how its tensors are called in the empty ``model``."""

    reader: Any
    processor: Any
    names: dict[str, str]
    model: Any


def open_stream(file: Path, architecture: str) -> Stream | None:
    """``None`` where tensors do not correspond one to one. Raises ``ValueError`` and the like
    for what transformers cannot read."""
    import torch
    from gguf import GGUFReader
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers import modeling_gguf_pytorch_utils as rules

    kind = rules.TENSOR_PROCESSORS.get(architecture, rules.TensorProcessor)
    config = AutoConfig.from_pretrained(str(file.parent), gguf_file=file.name)
    experts = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None)
    if kind.__name__ not in _ONE_TO_ONE or experts:
        return None
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    processor = kind(config=rules.load_gguf_checkpoint(str(file))["config"])
    names = rules.get_gguf_hf_weights_map(model, processor)
    return Stream(GGUFReader(str(file)), processor, names, model)


def write_shards(stream: Stream, folder: Path, progress: Callable[[float], None]) -> None:
    """All weights as bfloat16, and their index. Shards that are there already are kept.
    Raises ``Impossible`` when a weight is missing or has another shape."""
    expected = _expected(stream.model)
    tensors = [each for each in stream.reader.tensors if each.name in stream.names]
    missing = sorted(set(expected) - {stream.names[each.name] for each in tensors})
    if missing:
        raise Impossible(
            f"the file lacks {len(missing)} weights of its architecture, {missing[0]} among them."
        )
    shards = _shards(tensors)
    _forget_others(folder, [[each.name for each in shard] for shard in shards])
    total, done = sum(int(each.n_elements) for each in tensors), 0
    index = {}

    def advance(elements: int) -> None:
        nonlocal done
        done += elements
        progress(done / total)

    for number, shard in enumerate(shards, start=1):
        name = _shard_name(number, len(shards))
        index.update(dict.fromkeys((stream.names[each.name] for each in shard), name))
        if (folder / name).exists():
            advance(sum(int(each.n_elements) for each in shard))
        else:
            _write_shard(stream, shard, expected, folder / name, advance)
    if len(shards) > 1:
        text = json.dumps({"metadata": {"total_size": 2 * total}, "weight_map": index}, indent=2)
        (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    (folder / PLAN).unlink()


def save_config(stream: Stream, folder: Path) -> None:
    """``config.json``, as for a model that was saved."""
    import torch

    config = stream.model.config
    config.architectures = [type(stream.model).__name__]
    config.dtype = torch.bfloat16
    config.save_pretrained(folder)


def _expected(model: Any) -> dict[str, tuple[int, ...]]:
    """Name → shape of each weight that is saved: of tied ones, the first."""
    found, seen = {}, set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            found[name] = tuple(tensor.shape)
        seen.add(id(tensor))
    return found


def _shards(tensors: list[Any]) -> list[list[Any]]:
    shards: list[list[Any]] = [[]]
    size = 0
    for tensor in tensors:
        length = 2 * int(tensor.n_elements)
        if size and size + length > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += length
    return shards


def _shard_name(number: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"


def _forget_others(folder: Path, shards: list[list[str]]) -> None:
    """Shards that another version made, or by another plan, are made anew."""
    import transformers

    plan = json.dumps({"transformers": transformers.__version__, "shards": shards})
    path = folder / PLAN
    if not path.exists() or path.read_text(encoding="utf-8") != plan:
        for old in folder.glob("model*.safetensors"):
            old.unlink()
        path.write_text(plan, encoding="utf-8")


def _write_shard(
    stream: Stream,
    shard: list[Any],
    expected: dict[str, tuple[int, ...]],
    path: Path,
    advance: Callable[[int], None],
) -> None:
    import numpy as np
    import torch
    from gguf import dequantize
    from safetensors.torch import save_file

    found = {}
    for tensor in shard:
        advance(int(tensor.n_elements))
        weights = dequantize(tensor.data, tensor.tensor_type)
        result = stream.processor.process(
            weights=weights,
            name=tensor.name,
            tensor_key_mapping=stream.names,
            parsed_parameters={"tensors": {}},
        )
        name = stream.names[result.name]
        if name not in expected:
            continue
        values = torch.from_numpy(np.copy(result.weights)).to(torch.bfloat16)
        if tuple(values.shape) != expected[name]:
            raise Impossible(
                f"{tensor.name} has the shape {tuple(values.shape)}, and the model wants"
                f" {expected[name]}."
            )
        found[name] = values.contiguous()
    partial = path.with_name(f".{path.name}.partial")
    save_file(found, partial, metadata={"format": "pt"})
    partial.replace(path)
