"""A converted model against the metadata of its file: the conversion's last word.

A tokenizer that lost its BOS, or a special token that falls to pieces, still gives a
model that talks; it only talks worse. So everything that can be compared is compared.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmserve.provision.facts import CONTROL, USER_DEFINED, GgufFacts, chat_templates
from llmserve.provision.rope import Impossible

WORST_SHOWN = 3


def verify_tokenizer(folder: Path, facts: GgufFacts) -> None:
    """Vocabulary, special tokens, BOS and EOS of the saved tokenizer. Raises
    ``Impossible`` when one of them is not what the file says."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    tokens = facts.tokens
    if len(tokenizer) > len(tokens):
        raise Impossible(
            f"the converted tokenizer has {len(tokenizer)} tokens, the file {len(tokens)}."
        )
    types = facts.metadata.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    whole = [index for index, kind in enumerate(types) if kind in (CONTROL, USER_DEFINED)]
    _verify_whole_tokens(tokenizer, facts, whole)
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        expected, found = facts.token_id(key), getattr(tokenizer, f"{name}_token_id")
        if expected is not None and found != expected:
            raise Impossible(f"the converted tokenizer has {name} = {found}, the file {expected}.")
    ids = tokenizer("a")["input_ids"]
    bos, eos = facts.token_id("bos"), facts.token_id("eos")
    starts, ends = bos is not None and ids[0] == bos, eos is not None and ids[-1] == eos
    if (bos is not None and starts != facts.add_bos) or (eos is not None and ends != facts.add_eos):
        raise Impossible(
            f"the converted tokenizer puts other tokens around a text than the file says:"
            f" {ids} for 'a', BOS {bos} ({facts.add_bos}), EOS {eos} ({facts.add_eos})."
        )
    plain = tokenizer.decode(
        tokenizer("Hello, world! 1 + 23 = 24\n", add_special_tokens=False).input_ids
    )
    if plain.strip() != "Hello, world! 1 + 23 = 24":
        raise Impossible(f"the converted tokenizer does not give a text back as it was: {plain!r}.")


def _verify_whole_tokens(tokenizer: Any, facts: GgufFacts, whole: list[int]) -> None:
    """Special tokens stay one token, under their own id."""
    broken = []
    for index in whole:
        text = facts.tokens[index]
        if text and tokenizer(text, add_special_tokens=False)["input_ids"] != [index]:
            broken.append(text)
    if not broken:
        return
    named = {facts.token_id(name) for name in ("bos", "eos", "eot", "eom")}
    used = "".join(chat_templates(facts).values())
    needed = [text for text in broken if text in used or facts.tokens.index(text) in named]
    examples = ", ".join(repr(text) for text in (needed or broken)[:WORST_SHOWN])
    if needed:
        raise Impossible(f"special tokens fall to pieces in the converted tokenizer: {examples}.")
    facts.notes.append(
        f"{len(broken)} special tokens of this file are read as plain text, {examples} among them."
    )


def verify_weights(model: Any, facts: GgufFacts) -> None:
    """Every weight of the file is in the model, and the embedding has a row for each
    token. Raises ``Impossible``."""
    rows = int(model.get_input_embeddings().weight.shape[0])
    if rows < len(facts.tokens):
        raise Impossible(
            f"the embedding has {rows} rows for {len(facts.tokens)} tokens of the vocabulary."
        )
    converted = sum(parameter.numel() for parameter in model.parameters())
    if converted != facts.weights:
        raise Impossible(
            f"the file has {facts.weights:,} weights and the converted model {converted:,}:"
            f" this variant of {facts.architecture!r} cannot be carried over. Serve the model's"
            " own SafeTensors repository instead."
        )
