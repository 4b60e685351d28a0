"""Describing an APR file."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from typing import Any

from llmserve.modelfile.apr import read_apr
from llmserve.modelfile.assemble import Collected
from llmserve.modelfile.fingerprint import combined
from llmserve.modelfile.hf_facts import HfFacts
from llmserve.modelfile.jsontext import flatten, get_text
from llmserve.modelfile.layout import shortened
from llmserve.modelfile.source import Store
from llmserve.modelfile.templates import chat_template
from llmserve.modelfile.types import ChatTemplate, Format, ModelFile, SpecialToken, Tokenizer
from llmserve.modelfile.weights import weigh

_SLACK = 67
"""Padding to 64 bytes, and the checksum at the end."""


def describe_apr(store: Store, name: str) -> ModelFile:
    """Raises ``ModelFileError``."""
    collected = Collected()
    with closing(store.open(name)) as source:
        header = read_apr(source)
        collected.problems += header.problems
        collected.add(source, header.tensors, header.header_bytes, header.data_start, _SLACK)
    values = header.metadata
    facts = HfFacts.of(values)
    parameters, quantization = weigh(collected.tensors, facts.experts)
    template = get_text(values, "chat_template", "tokenizer.chat_template")
    templates: tuple[ChatTemplate, ...] = (chat_template("default", template),) if template else ()
    return ModelFile(
        format=Format.APR,
        version=header.version,
        kind="model",
        files=tuple(collected.files),
        tensors=tuple(collected.tensors),
        metadata=flatten("", values) if values else {},
        family=get_text(values, "architecture", "hf_model_type", "model_type"),
        architecture=get_text(values, "hf_architecture", "architecture", "model_type"),
        name=get_text(values, "name", "model_name") or store.name,
        licence=get_text(values, "license"),
        dimensions=facts.dimensions,
        attention=facts.attention,
        rope=facts.rope,
        experts=facts.experts,
        tokenizer=_tokenizer(values),
        chat_templates=templates,
        parameters=parameters,
        quantization=quantization,
        adapter=None,
        custom_code=(),
        problems=tuple(shortened(collected.problems)),
        fingerprint=combined(collected.marks),
    )


def _tokenizer(values: Mapping[str, Any]) -> Tokenizer | None:
    given = values.get("special_tokens")
    special = {}
    for role in ("bos", "eos", "unk", "pad"):
        text = given.get(f"{role}_token") if isinstance(given, dict) else None
        number = values.get(f"{role}_token_id", values.get(f"tokenizer.{role}_token_id"))
        text = text if isinstance(text, str) else None
        number = number if type(number) is int and number >= 0 else None
        if text is not None or number is not None:
            special[role] = SpecialToken(number, text)
    return Tokenizer(special=special) if special else None
