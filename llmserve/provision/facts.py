"""What a GGUF file says about its model, and how a converted folder comes to say it too.

Where the file is silent, llama.cpp's defaults are meant (``src/llama-vocab.cpp`` there):
they depend on the kind of tokenizer and on ``tokenizer.ggml.pre``, the way in which text
is split before the merges apply.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmserve.provision.rope import Impossible, rope_parameters

CONTROL, USER_DEFINED = 3, 4
"""Values of ``tokenizer.ggml.token_type``: never in plain text, and matched whole in it."""

SPLITS_DIGITS = frozenset(
    {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}
)
"""GPT-2's split, but each digit on its own. transformers does not know these."""

SPLITS_LIKE_GPT2 = frozenset(
    {"gpt-2", "gpt2", "phi-2", "jina-es", "jina-de", "jina-v1-en", "jina-v2-es", "jina-v2-de"}
    | {"gigachat", "mellum", "modern-bert", "roberta-bpe", "olmo", "mpt", "a.x-4.0"}
)

KEEPS_WHOLE_WORDS = frozenset(
    {"llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"}
    | {"jina-v5-nano", "tekken"}
)
"""A word that is in the vocabulary is one token, whatever the merges say; and text begins
with BOS unless the file says otherwise."""

NOT_CARRIED = re.compile(r"rope_freqs|rope_factors|\.nextn\.|^mm\.|^v\.|^mtp")
"""Tensors that are not weights of the language model; ``rope_freqs`` becomes part of the
configuration."""

SAMPLING = {
    "general.sampling.temp": "temperature",
    "general.sampling.top_k": "top_k",
    "general.sampling.top_p": "top_p",
    "general.sampling.min_p": "min_p",
    "general.sampling.penalty_repeat": "repetition_penalty",
}


@dataclass(frozen=True)
class GgufFacts:
    """Metadata of a file, and the shape of each tensor. ``notes`` collects what could not
    be carried over exactly."""

    metadata: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    rope_freqs: tuple[float, ...] = ()
    notes: list[str] = field(default_factory=list)

    @property
    def architecture(self) -> str:
        return str(self.metadata["general.architecture"])

    @property
    def weights(self) -> int:
        """Number of weights of the language model."""
        total = 0
        for name, shape in self.shapes.items():
            if not NOT_CARRIED.search(name):
                count = 1
                for dimension in shape:
                    count *= dimension
                total += count
        return total

    @property
    def tokens(self) -> list[str]:
        return list(self.metadata["tokenizer.ggml.tokens"])

    @property
    def kind(self) -> str:
        """``gpt2`` (byte-level BPE), ``llama`` (SentencePiece), ``t5``, …"""
        return str(self.metadata.get("tokenizer.ggml.model"))

    @property
    def split(self) -> str:
        return str(self.metadata.get("tokenizer.ggml.pre", "default"))

    def token_id(self, name: str) -> int | None:
        value = self.metadata.get(f"tokenizer.ggml.{name}_token_id")
        # Files without such a token hold -1 or 2^32 - 1.
        return int(value) if value is not None and 0 <= int(value) < len(self.tokens) else None

    @property
    def add_bos(self) -> bool:
        default = self.kind == "llama" or (self.kind == "gpt2" and self.split in KEEPS_WHOLE_WORDS)
        return bool(self.metadata.get("tokenizer.ggml.add_bos_token", default))

    @property
    def add_eos(self) -> bool:
        return bool(self.metadata.get("tokenizer.ggml.add_eos_token", self.kind == "t5"))

    @property
    def end_ids(self) -> list[int]:
        """Every token that ends an answer: end of text, of turn, of message."""
        found = [self.token_id(name) for name in ("eos", "eot", "eom")]
        return list(dict.fromkeys(each for each in found if each is not None))


def read_facts(file: Path) -> GgufFacts:
    """Read the header. Raises ``Impossible`` for files that are no complete text model."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(str(file))
        metadata = {name: each.contents() for name, each in reader.fields.items()}
    except (ValueError, IndexError, KeyError, OverflowError, UnicodeDecodeError) as error:
        raise Impossible(f"the file is damaged or not complete ({error}).") from error
    if "general.architecture" not in metadata:
        raise Impossible("the file does not name its architecture (general.architecture).")
    if metadata.get("general.type", "model") != "model":
        raise Impossible(f"the file holds a {metadata['general.type']}, not a whole model.")
    if int(metadata.get("split.count", 0)) > 1:
        raise Impossible(
            f"the model is split over {metadata['split.count']} files. Join them first:"
            " llama-gguf-split --merge first-file.gguf whole.gguf"
        )
    if not metadata.get("tokenizer.ggml.tokens"):
        raise Impossible("the file has no tokenizer (tokenizer.ggml.tokens).")
    shapes = {each.name: tuple(int(size) for size in each.shape) for each in reader.tensors}
    freqs = next((each.data for each in reader.tensors if each.name == "rope_freqs.weight"), ())
    facts = GgufFacts(metadata, shapes, tuple(float(value) for value in freqs))
    if any("rope_factors" in name for name in shapes):
        raise Impossible(
            "its rotary embedding is scaled by tables (LongRoPE), which cannot be carried over."
            " Serve the model's own SafeTensors repository instead."
        )
    return facts


# --- the tokenizer --------------------------------------------------------------------


def repair_tokenizer(folder: Path, facts: GgufFacts) -> None:
    """Bring the saved tokenizer in line with the file: split, whole words, BOS and EOS."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    # transformers adds its own default tokens behind the vocabulary; the model has no rows
    # for them.
    size = len(facts.tokens)
    content["added_tokens"] = [each for each in content["added_tokens"] if each["id"] < size]
    if facts.kind == "gpt2":
        _repair_split(content, facts)
    content["post_processor"] = _post_processor(facts) or content.get("post_processor")
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")

    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config |= {"add_bos_token": facts.add_bos, "add_eos_token": facts.add_eos}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        index = facts.token_id(key)
        if index is not None:
            config[f"{name}_token"] = facts.tokens[index]
        else:
            config.pop(f"{name}_token", None)
    # What transformers notes about the place the tokenizer came from says nothing here.
    for key in ("is_local", "local_files_only", "chat_template"):
        config.pop(key, None)
    config["model_max_length"] = _context_length(facts)
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _repair_split(content: dict[str, Any], facts: GgufFacts) -> None:
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    if facts.split in SPLITS_DIGITS:
        content["pre_tokenizer"] = {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                {
                    "type": "ByteLevel",
                    "add_prefix_space": False,
                    "trim_offsets": True,
                    "use_regex": True,
                },
            ],
        }
    elif facts.split not in SPLITS_LIKE_GPT2 and facts.split not in GGUF_PRE_TOKENIZER_SPLITS:
        facts.notes.append(
            f"The way in which this model's text is split ({facts.split!r}) is not known; it is"
            " split as for GPT-2, and answers may be a little worse than with the original."
        )
    content["model"]["ignore_merges"] = facts.split in KEEPS_WHOLE_WORDS


def _post_processor(facts: GgufFacts) -> dict[str, Any] | None:
    """Puts BOS before and EOS behind each text, as the file wants it."""
    bos = facts.token_id("bos") if facts.add_bos else None
    eos = facts.token_id("eos") if facts.add_eos else None
    if bos is None and eos is None and facts.kind != "gpt2":
        return None

    def special(index: int, kind: int) -> dict[str, Any]:
        return {"SpecialToken": {"id": facts.tokens[index], "type_id": kind}}

    def around(letter: str, kind: int) -> list[dict[str, Any]]:
        before = [] if bos is None else [special(bos, kind)]
        after = [] if eos is None else [special(eos, kind)]
        return [*before, {"Sequence": {"id": letter, "type_id": kind}}, *after]

    used = {index for index in (bos, eos) if index is not None}
    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": around("A", 0) + around("B", 1),
        "special_tokens": {
            facts.tokens[index]: {
                "id": facts.tokens[index],
                "ids": [index],
                "tokens": [facts.tokens[index]],
            }
            for index in sorted(used)
        },
    }


def chat_templates(facts: GgufFacts) -> dict[str, str]:
    """The chat templates, by the name of the file that transformers reads them from."""
    files = {}
    for key, value in facts.metadata.items():
        if key == "tokenizer.chat_template":
            files["chat_template.jinja"] = str(value)
        elif key.startswith("tokenizer.chat_template."):
            name = re.sub(r"[^A-Za-z0-9_-]", "_", key.removeprefix("tokenizer.chat_template."))
            files[f"additional_chat_templates/{name}.jinja"] = str(value)
    return files


# --- the configuration ----------------------------------------------------------------


def repair_config(folder: Path, facts: GgufFacts) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for key in ("quantization_config", "_model_name_or_path", "_name_or_path"):
        config.pop(key, None)
    for name, key in (("bos", "bos"), ("pad", "padding")):
        config[f"{name}_token_id"] = facts.token_id(key)
    ends = facts.end_ids
    config["eos_token_id"] = ends[0] if len(ends) == 1 else ends or None
    rope = rope_parameters(facts.architecture, facts.metadata, facts.rope_freqs)
    if rope:
        config["rope_parameters"] = {**config.get("rope_parameters", {}), **rope}
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def generation_config(facts: GgufFacts) -> dict[str, Any]:
    """How answers end, and the sampling that the file recommends."""
    config: dict[str, Any] = {
        "bos_token_id": facts.token_id("bos"),
        "eos_token_id": facts.end_ids or None,
        "pad_token_id": facts.token_id("padding"),
    }
    for key, name in SAMPLING.items():
        if key in facts.metadata:
            config[name] = facts.metadata[key]
    if "temperature" in config:
        config["do_sample"] = config["temperature"] > 0
    return {key: value for key, value in config.items() if value is not None}


def _context_length(facts: GgufFacts) -> int:
    return int(facts.metadata.get(f"{facts.architecture}.context_length", 2**31))
