"""What differs between two models: configuration, tokenizer, tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from llmserve.modelfile.types import ModelFile

_FACTS = (
    *("format", "kind", "family", "architecture", "dimensions", "attention", "rope", "experts"),
    *("parameters", "quantization", "adapter", "custom_code"),
)


@dataclass(frozen=True, slots=True)
class Difference:
    """``what`` is a fact, a key or a tensor; ``a`` and ``b`` what each model says
    (``None``: nothing)."""

    what: str
    a: Any
    b: Any


@dataclass(frozen=True, slots=True)
class Comparison:
    """What two models differ in. Names, licences and the layout of files do not count;
    neither do the weights themselves, which are not read: ``same_data`` says whether all
    sampled blocks are equal as well."""

    configuration: tuple[Difference, ...]
    tokenizer: tuple[Difference, ...]
    tensors: tuple[Difference, ...]
    same_data: bool

    @property
    def equal(self) -> bool:
        return not (self.configuration or self.tokenizer or self.tensors)


def compare(a: ModelFile, b: ModelFile) -> Comparison:
    """Tensors are compared by name, dtype and shape. Two formats name things differently:
    between a GGUF and a SafeTensors model only facts and sizes can agree."""
    return Comparison(
        configuration=(*_facts(a, b), *_keys(a, b)),
        tokenizer=_tokenizer(a, b),
        tensors=_tensors(a, b),
        same_data=a.fingerprint == b.fingerprint,
    )


def _facts(a: ModelFile, b: ModelFile) -> list[Difference]:
    found: list[Difference] = []
    for name in _FACTS:
        found += _values(name, getattr(a, name), getattr(b, name))
    return found


def _values(name: str, a: Any, b: Any) -> list[Difference]:
    """Of two values of one dataclass, only the fields that differ."""
    if a == b:
        return []
    if type(a) is type(b) and hasattr(a, "__dataclass_fields__"):
        return [
            difference
            for each in fields(a)
            for difference in _values(
                f"{name}.{each.name}", getattr(a, each.name), getattr(b, each.name)
            )
        ]
    return [Difference(name, a, b)]


def _keys(a: ModelFile, b: ModelFile) -> list[Difference]:
    """Keys of the metadata that are not about the tokenizer."""
    if a.format is not b.format:
        return []
    one, two = _own_keys(a.metadata), _own_keys(b.metadata)
    return _mapping(one, two)


def _own_keys(metadata: Mapping[str, Any]) -> dict[str, Any]:
    aside = ("tokenizer", "general.name", "general.license", "config._name_or_path")
    return {key: value for key, value in metadata.items() if not key.startswith(aside)}


def _tokenizer(a: ModelFile, b: ModelFile) -> tuple[Difference, ...]:
    found = _values("tokenizer", a.tokenizer, b.tokenizer)
    templates = [{each.name: each.text for each in model.chat_templates} for model in (a, b)]
    found += [
        Difference(f"chat template {each.what}", each.a, each.b)
        for each in _mapping(templates[0], templates[1])
    ]
    if a.format is b.format:
        keys = [
            {key: value for key, value in model.metadata.items() if key.startswith("tokenizer")}
            for model in (a, b)
        ]
        found += [each for each in _mapping(*keys) if "chat_template" not in each.what]
    return tuple(found)


def _tensors(a: ModelFile, b: ModelFile) -> tuple[Difference, ...]:
    if a.format is not b.format:
        return ()
    one, two = ({t.name: f"{t.dtype} {list(t.shape)}" for t in model.tensors} for model in (a, b))
    return tuple(_mapping(one, two))


def _mapping(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Difference]:
    return [
        Difference(key, a.get(key), b.get(key))
        for key in dict.fromkeys((*a, *b))
        if a.get(key) != b.get(key)
    ]
