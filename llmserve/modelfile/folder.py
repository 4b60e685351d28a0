"""Which files of a folder are the model, and what the small files beside them say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llmserve.modelfile.errors import Malformed, ModelFileError, Refused, UnknownFormat
from llmserve.modelfile.jsontext import read_object
from llmserve.modelfile.jsonwalk import decode, find_member, pairs
from llmserve.modelfile.source import Buffer, Store
from llmserve.modelfile.types import Format, Problem, ProblemKind

INDEX = "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER = "adapter_model.safetensors"
MAX_SHARDS = 10_000
MAX_INDEX = 48_000_000
MAX_TENSORS = 300_000
SHARD = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})\.(safetensors|gguf)", re.DOTALL)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


@dataclass(frozen=True, slots=True)
class Weights:
    """The files that hold the tensors. ``index`` says in which one each tensor should
    lie (empty without an index)."""

    format: Format
    files: tuple[str, ...]
    index: Mapping[str, str] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()


def find_weights(store: Store) -> Weights:
    """What to read in a folder. Raises ``Refused`` (pickles only, several models),
    ``UnknownFormat`` (nothing) or ``Malformed`` (the index)."""
    sizes = store.sizes()
    if INDEX in sizes:
        return _indexed(store, sizes)
    if ADAPTER_CONFIG in sizes and ADAPTER in sizes and "model.safetensors" not in sizes:
        return Weights(Format.SAFETENSORS, (ADAPTER,))
    safetensors = sorted(each for each in sizes if each.endswith(".safetensors"))
    if "model.safetensors" in safetensors:
        return Weights(Format.SAFETENSORS, ("model.safetensors",))
    if safetensors:
        return _unindexed(safetensors)
    for ending, kind in ((".gguf", Format.GGUF), (".apr", Format.APR)):
        if found := sorted(each for each in sizes if each.endswith(ending)):
            return Weights(kind, (_only(store, found),))
    pickles = sorted(each for each in sizes if each.endswith(_PICKLES))
    if pickles:
        reason = "its weights are pickles, and loading one executes the code it names"
        raise Refused(pickles[0], f"{reason}; ask for SafeTensors")
    raise UnknownFormat(store.name, b"", "There are no model files in the folder")


def parts(store: Store, name: str) -> tuple[list[str], list[Problem]]:
    """All parts of a model of which ``name`` is one: those that are there."""
    found = SHARD.fullmatch(name)
    if found is None:
        return [name], []
    stem, _, count, ending = found.groups()
    if not 1 <= int(count) <= MAX_SHARDS:
        return [name], []
    wanted = [f"{stem}-{part:05d}-of-{count}.{ending}" for part in range(1, int(count) + 1)]
    sizes = store.sizes()
    problems = [
        Problem(ProblemKind.MISSING, each, "This part of the model is missing.")
        for each in wanted
        if each not in sizes
    ]
    return [each for each in wanted if each in sizes], problems


def _only(store: Store, names: list[str]) -> str:
    """The first file of the one model that a folder of files holds."""
    models = {match[1] if (match := SHARD.fullmatch(each)) else each: each for each in names[::-1]}
    models = {key: name for key, name in models.items() if not key.startswith("mmproj")} or models
    if len(models) > 1:
        raise Refused(store.name, f"it holds several models; name one of {', '.join(names)[:500]}")
    return next(iter(models.values()))


def _unindexed(names: list[str]) -> Weights:
    shards = [each for each in names if SHARD.fullmatch(each)]
    files = tuple(
        shards or [each for each in names if not each.startswith("consolidated")] or names
    )
    problems: tuple[Problem, ...] = ()
    if shards:
        detail = "The model has several files and no index of them."
        problems = (Problem(ProblemKind.INDEX, INDEX, detail),)
    return Weights(Format.SAFETENSORS, files, problems=problems)


def _indexed(store: Store, sizes: Mapping[str, int]) -> Weights:
    index = read_index(store)
    files = sorted(set(index.values()))
    if len(files) > MAX_SHARDS:
        raise Malformed(INDEX, "weight_map", f"at most {MAX_SHARDS} files", str(len(files)))
    problems = []
    for name in files:
        # Also "..", for no file of a folder has that name.
        if "/" in name or "\\" in name or "\0" in name or name in ("", ".", ".."):
            raise Malformed(INDEX, "weight_map", "names of files in this folder", ascii(name[:100]))
        if name not in sizes:
            detail = "The index names it, and it is missing."
            problems.append(Problem(ProblemKind.MISSING, name, detail))
    present = tuple(each for each in files if each in sizes)
    if not present:
        raise Malformed(INDEX, "weight_map", "files that are in the folder", str(files[:3])[:200])
    return Weights(Format.SAFETENSORS, present, index, tuple(problems))


def read_index(store: Store) -> dict[str, str]:
    """Tensor → file."""
    source = store.open(INDEX)
    try:
        if source.size > MAX_INDEX:
            raise Refused(INDEX, f"it has {source.size:,} bytes; at most {MAX_INDEX:,} are read")
        buffer = source.head(source.size)
        start = find_member(INDEX, buffer, len(buffer), "weight_map")
        if start is None:
            raise Malformed(INDEX, "the top level", "weight_map", "no such key")
        return _weight_map(buffer, start)
    finally:
        source.close()


def _weight_map(buffer: Buffer, start: int) -> dict[str, str]:
    index: dict[str, str] = {}
    names: dict[bytes, str] = {}
    for key, value, at in pairs(INDEX, buffer, start, len(buffer)):
        tensor = decode(INDEX, key, at)
        if tensor in index:
            raise Malformed(INDEX, f"weight_map, {tensor[:100]!a}", "each tensor once")
        if len(index) >= MAX_TENSORS:
            raise Malformed(INDEX, f"byte {at}", f"at most {MAX_TENSORS:,} tensors", "more")
        # One text for each file, not one for each tensor.
        if (name := names.get(value)) is None:
            name = names[value] = decode(INDEX, value, at)
        index[tensor] = name
    return index


def read_config(store: Store, name: str, problems: list[Problem]) -> dict[str, Any]:
    """A small file beside the weights; when it cannot be read, that is a problem."""
    if name not in store.sizes():
        return {}
    try:
        return read_object(store, name)
    except ModelFileError as error:
        problems.append(Problem(ProblemKind.METADATA, name, error.message))
        return {}


def check_index(weights: Weights, found: Mapping[str, str]) -> list[Problem]:
    """Compare the index with what the files hold: tensor → file."""
    if not weights.index:
        return []
    problems = []
    present = set(weights.files)
    for tensor, file in weights.index.items():
        actual = found.get(tensor)
        if actual != file and file in present:
            where = f"{file}: {tensor[:100]!a}"
            detail = f"The index is wrong: it is in {actual or 'no file'}."
            problems.append(Problem(ProblemKind.INDEX, where, detail))
    for tensor, file in found.items():
        if tensor not in weights.index:
            where = f"{file}: {tensor[:100]!a}"
            problems.append(Problem(ProblemKind.INDEX, where, "The index does not name it."))
    return problems
