"""Putting the readings of one model's files together."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from llmserve.modelfile.fingerprint import combined, fingerprint
from llmserve.modelfile.folder import (
    ADAPTER,
    ADAPTER_CONFIG,
    Weights,
    check_index,
    parts,
    read_config,
)
from llmserve.modelfile.gguf import GgufHeader, read_gguf
from llmserve.modelfile.gguf_facts import GgufFacts
from llmserve.modelfile.hf_facts import HfFacts
from llmserve.modelfile.jsontext import flatten, get_number, get_text, meta_value
from llmserve.modelfile.layout import check_layout, shortened
from llmserve.modelfile.safetensors import read_safetensors
from llmserve.modelfile.source import Source, Store
from llmserve.modelfile.tokenizers import CONFIG, read_templates, read_tokenizer
from llmserve.modelfile.types import (
    Adapter,
    FileInfo,
    Format,
    MetaValue,
    ModelFile,
    Problem,
    ProblemKind,
    TensorInfo,
)
from llmserve.modelfile.weights import weigh


@dataclass(slots=True)
class Collected:
    """What the files that hold tensors gave so far."""

    files: list[FileInfo] = field(default_factory=list)
    marks: list[tuple[str, str]] = field(default_factory=list)
    tensors: list[TensorInfo] = field(default_factory=list)
    where: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def add(
        self, source: Source, tensors: list[TensorInfo], header: int, start: int, slack: int
    ) -> None:
        """One file: its tensors, the end of its header, and where its data begin."""
        self.files.append(FileInfo(source.name, source.size, header, source.mapped))
        self.marks.append((source.name, fingerprint(source, header)))
        for tensor in tensors:
            if tensor.name in self.where:
                where = f"{source.name}: {tensor.name[:100]!a}"
                detail = f"It is in {self.where[tensor.name]} as well."
                self.problems.append(Problem(ProblemKind.INDEX, where, detail))
            self.where[tensor.name] = source.name
        self.tensors += tensors
        self.problems += check_layout(source.name, tensors, start, source.size, slack)


def describe_gguf(store: Store, name: str) -> ModelFile:
    """All parts of the model that ``name`` is a part of."""
    names, problems = parts(store, name)
    collected = Collected(problems=problems)
    with closing(store.open(names[0])) as source:
        header = read_gguf(source)
        add_gguf(collected, source, header)
        facts = GgufFacts.of(header)
        count = facts.parts or 1
        if count > 1 and len(names) + len(problems) != count:
            detail = f"The model is split into {count} files, but the names tell otherwise."
            problems.append(Problem(ProblemKind.INDEX, names[0], detail))
        for other in names[1:]:
            with closing(store.open(other)) as part:
                add_gguf(collected, part, read_gguf(part))
        parameters, quantization = weigh(collected.tensors, facts.experts, label=facts.label)
        order = "little" if header.cursor.order == "<" else "big"
        return ModelFile(
            format=Format.GGUF,
            version=f"{header.version}{'' if order == 'little' else ' (big-endian)'}",
            kind=facts.kind,
            files=tuple(collected.files),
            tensors=tuple(collected.tensors),
            metadata=facts.metadata(),
            family=facts.family or None,
            architecture=facts.family or None,
            name=facts.name or store.name,
            licence=facts.licence,
            dimensions=facts.dimensions,
            attention=facts.attention,
            rope=facts.rope,
            experts=facts.experts,
            tokenizer=facts.tokenizer,
            chat_templates=facts.chat_templates,
            parameters=parameters,
            quantization=quantization,
            adapter=facts.adapter,
            custom_code=(),
            problems=tuple(shortened(collected.problems)),
            fingerprint=combined(collected.marks),
        )


def add_gguf(collected: Collected, source: Source, header: GgufHeader) -> None:
    alignment = header.metadata.get("general.alignment", 32)
    slack = alignment - 1 if isinstance(alignment, int) else 0
    collected.problems += header.problems
    collected.add(source, header.tensors, header.header_bytes, header.data_start, slack)


def describe_safetensors(store: Store, weights: Weights, *, folder: bool) -> ModelFile:
    """The files of ``weights``; in a ``folder``, with the configuration beside them."""
    collected = Collected(problems=list(weights.problems))
    own: dict[str, str] = {}
    for name in weights.files:
        with closing(store.open(name)) as source:
            header = read_safetensors(source)
            collected.problems += header.problems
            collected.add(source, header.tensors, header.data_start, header.data_start, 0)
            own |= header.metadata
    collected.problems += check_index(weights, collected.where)
    problems = collected.problems
    config = read_config(store, "config.json", problems) if folder else {}
    tokens = read_config(store, CONFIG, problems) if folder else {}
    peft = read_config(store, ADAPTER_CONFIG, problems) if ADAPTER in weights.files else {}
    facts = HfFacts.of(config)
    parameters, quantization = weigh(collected.tensors, facts.experts, method=facts.quantization)
    custom = _custom_code(store, config, problems) if folder else ()
    shown: dict[str, MetaValue] = {key: meta_value(value) for key, value in own.items()}
    for prefix, values in (("config", config), ("tokenizer_config", tokens), ("adapter", peft)):
        shown |= flatten(prefix, values) if values else {}
    return ModelFile(
        format=Format.SAFETENSORS,
        version=None,
        kind="adapter" if peft else "model",
        files=tuple(collected.files),
        tensors=tuple(collected.tensors),
        metadata=shown,
        family=facts.family,
        architecture=facts.architecture,
        name=_name(store, own),
        licence=_licence(store, own) if folder else get_text(own, "license", "modelspec.license"),
        dimensions=facts.dimensions,
        attention=facts.attention,
        rope=facts.rope,
        experts=facts.experts,
        tokenizer=read_tokenizer(store, config, tokens) if folder else None,
        chat_templates=read_templates(store, tokens, problems) if folder else (),
        parameters=parameters,
        quantization=quantization,
        adapter=_adapter(peft) if peft else None,
        custom_code=custom,
        problems=tuple(shortened(problems)),
        fingerprint=combined(collected.marks),
    )


def _name(store: Store, own: Mapping[str, str]) -> str:
    """Configurations name the place they were made from; the folder's name is newer."""
    return get_text(own, "modelspec.title", "name") or store.name


def _licence(store: Store, own: Mapping[str, str]) -> str | None:
    """From the file's own metadata, or from the head of the model card."""
    if found := get_text(own, "license", "modelspec.license"):
        return found
    if "README.md" not in store.sizes():
        return None
    with closing(store.open("README.md")) as source:
        text = source.read(0, 8192).decode(errors="replace")
    if not text.startswith("---"):
        return None
    for line in text.split("\n---", 1)[0].splitlines():
        if line.startswith("license:"):
            return line.removeprefix("license:").strip().strip("'\"")[:100] or None
    return None


def _custom_code(
    store: Store, config: Mapping[str, Any], problems: list[Problem]
) -> tuple[str, ...]:
    """Python files that ``trust_remote_code`` would run."""
    if "auto_map" not in config:
        return ()
    found = tuple(sorted(each for each in store.sizes() if each.endswith(".py")))
    detail = "Loading it with remote code allowed runs Python that comes with the model."
    problems.append(Problem(ProblemKind.CODE, "config.json: auto_map", detail))
    return found


def _adapter(peft: Mapping[str, Any]) -> Adapter:
    modules = peft.get("target_modules")
    names = [modules] if isinstance(modules, str) else modules
    rank = peft.get("r")
    return Adapter(
        type=(get_text(peft, "peft_type") or "lora").lower(),
        rank=rank if type(rank) is int and rank >= 0 else None,
        alpha=get_number(peft, "lora_alpha"),
        target_modules=tuple(sorted(str(each) for each in names))
        if isinstance(names, list)
        else (),
        base_model=get_text(peft, "base_model_name_or_path"),
    )
