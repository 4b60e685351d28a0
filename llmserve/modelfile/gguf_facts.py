"""What a GGUF file's keys say about its model.

Key names are those of llama.cpp (``gguf-py/gguf/constants.py``), and so are the defaults
where a file is silent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmserve.modelfile.attention import MAX_LAYERS, Latent, LayerPlan, attention_of, every
from llmserve.modelfile.ggml import FILE_TYPES
from llmserve.modelfile.gguf import GgufArray, GgufHeader
from llmserve.modelfile.jsontext import SHOWN_ITEMS, get_count, get_number, get_text, meta_value
from llmserve.modelfile.templates import chat_template
from llmserve.modelfile.types import (
    Adapter,
    ArraySummary,
    Attention,
    ChatTemplate,
    Dimensions,
    Experts,
    MetaValue,
    Rope,
    SpecialToken,
    Tokenizer,
)

_WINDOW_PERIODS = {"gemma2": 2, "gemma3": 6, "cohere2": 4, "gpt-oss": 2, "exaone4": 4}
_WINDOW_PERIODS |= {"olmo2": 4, "llama4": 4, "gemma3n": 5, "smallthinker": 4, "afmoe": 4}
"""Each n-th layer sees everything, the others a window; files before 2026 do not say so."""

_NO_ATTENTION = ("mamba", "mamba2", "rwkv6", "rwkv7", "rwkv6qwen2", "arwkv7")
_ENCODERS = (
    "bert",
    "nomic-bert",
    "nomic-bert-moe",
    "jina-bert-v2",
    "jina-bert-v3",
    "neo-bert",
    "modern-bert",
    "eurobert",
    "t5encoder",
)
_ROLES = {"bos": "bos", "eos": "eos", "eot": "eot", "eom": "eom", "pad": "padding"}
_ROLES |= {"unk": "unknown", "sep": "seperator", "cls": "cls", "mask": "mask"}


@dataclass(frozen=True, slots=True)
class GgufFacts:
    """Readings of one header; ``values`` leaves the arrays out."""

    header: GgufHeader
    family: str
    values: Mapping[str, Any]

    @classmethod
    def of(cls, header: GgufHeader) -> GgufFacts:
        scalars = {k: v for k, v in header.metadata.items() if not isinstance(v, GgufArray)}
        return cls(header, get_text(scalars, "general.architecture") or "", scalars)

    def metadata(self) -> dict[str, MetaValue]:
        """All keys as they can be shown."""
        shown: dict[str, MetaValue] = {}
        for key, value in self.header.metadata.items():
            shown[key] = self._summary(value) if isinstance(value, GgufArray) else meta_value(value)
        return shown

    def _summary(self, array: GgufArray) -> ArraySummary:
        if array.type != "str":
            numbers = self.header.numbers(array, SHOWN_ITEMS)
            first = tuple(
                str(each) if isinstance(each, float) and not math.isfinite(each) else each
                for each in numbers
            )
            return ArraySummary(array.type, array.length, first)
        texts = (self.header.string(array, i) for i in range(min(array.length, SHOWN_ITEMS)))
        return ArraySummary("str", array.length, tuple((text or "")[:200] for text in texts))

    def count(self, key: str) -> int | None:
        """A key of the architecture; of one value per layer the largest."""
        return max(self.per_layer(key), default=0) or None

    def per_layer(self, key: str) -> list[int]:
        """One value, or one for each layer; nothing when the key is missing or wrong."""
        value = self.header.metadata.get(f"{self.family}.{key}")
        if isinstance(value, GgufArray):
            items: tuple[Any, ...] = self.header.numbers(value, MAX_LAYERS)
        else:
            items = (value,)
        valid = [each for each in items if type(each) in (int, bool) and 0 <= each <= 2**40]
        return [int(each) for each in valid] if len(valid) == len(items) else []

    @property
    def dimensions(self) -> Dimensions:
        rows = next(
            (t.shape[0] for t in self.header.tensors if t.name == "token_embd.weight" and t.shape),
            None,
        )
        return Dimensions(
            layers=self.layers,
            hidden_size=self.count("embedding_length"),
            intermediate_size=self.count("feed_forward_length"),
            vocab_size=rows or self.count("vocab_size") or self._tokens(),
            context_length=self.count("context_length"),
        )

    @property
    def layers(self) -> int | None:
        """Prediction heads for further tokens (MTP) are counted as blocks; they are not."""
        blocks = self.count("block_count")
        if blocks is None or blocks > MAX_LAYERS:
            return None
        return max(1, blocks - (self.count("nextn_predict_layers") or 0))

    @property
    def attention(self) -> Attention | None:
        layers, hidden = self.layers, self.count("embedding_length")
        heads = self.count("attention.head_count")
        if layers and self.family in _NO_ATTENTION:
            return attention_of(LayerPlan(0, (), 0, 0, (), recurrent=layers))
        if not layers or not heads:
            return None
        kv_heads = self._kv_heads(layers, heads)
        interval = self.count("full_attention_interval")
        if interval:
            kv_heads = [
                0 if skipped else each
                for each, skipped in zip(kv_heads, every(layers, interval), strict=True)
            ]
        key_dim = self.count("attention.key_length") or (hidden or 0) // heads
        return attention_of(
            LayerPlan(
                heads=heads,
                kv_heads=kv_heads,
                key_dim=self.count("attention.key_length_mla") or key_dim,
                value_dim=self.count("attention.value_length") or key_dim,
                windowed=self._windowed(layers),
                window=self.count("attention.sliding_window"),
                latent=self._latent(),
                recurrent=kv_heads.count(0),
                causal=self.family not in _ENCODERS
                and self.values.get(f"{self.family}.attention.causal") is not False,
            )
        )

    def _kv_heads(self, layers: int, heads: int) -> list[int]:
        found = self.per_layer("attention.head_count_kv") or [heads]
        if len(found) == 1:
            return found * layers
        return (found + [0] * layers)[:layers]

    def _windowed(self, layers: int) -> list[bool]:
        if not self.count("attention.sliding_window"):
            return [False] * layers
        pattern = self.per_layer("attention.sliding_window_pattern")
        if len(pattern) >= layers > 1:
            return [bool(each) for each in pattern[:layers]]
        return every(layers, pattern[0] if pattern else _WINDOW_PERIODS.get(self.family, 0))

    def _latent(self) -> Latent | None:
        rank = self.count("attention.kv_lora_rank")
        if rank is None:
            return None
        return Latent(rank, self.count("rope.dimension_count") or 0)

    @property
    def rope(self) -> Rope | None:
        prefix = f"{self.family}.rope"
        rope = Rope(
            theta=get_number(self.values, f"{prefix}.freq_base"),
            dimensions=self.count("rope.dimension_count"),
            scaling=get_text(self.values, f"{prefix}.scaling.type"),
            factor=get_number(self.values, f"{prefix}.scaling.factor", f"{prefix}.scale_linear"),
            original_context_length=self.count("rope.scaling.original_context_length"),
        )
        return None if rope == Rope() else rope

    @property
    def experts(self) -> Experts | None:
        total = self.count("expert_count")
        active = self.count("expert_used_count")
        if not total:
            return None
        return Experts(total, min(active or total, total), self.count("expert_shared_count") or 0)

    def _tokens(self) -> int | None:
        tokens = self.header.metadata.get("tokenizer.ggml.tokens")
        return tokens.length if isinstance(tokens, GgufArray) else None

    @property
    def tokenizer(self) -> Tokenizer | None:
        kind = get_text(self.values, "tokenizer.ggml.model")
        if kind is None and self._tokens() is None:
            return None
        add_bos = self.values.get("tokenizer.ggml.add_bos_token")
        add_eos = self.values.get("tokenizer.ggml.add_eos_token")
        return Tokenizer(
            kind=kind,
            pre=get_text(self.values, "tokenizer.ggml.pre"),
            tokens=self._tokens(),
            special=self._special(),
            add_bos=add_bos if isinstance(add_bos, bool) else None,
            add_eos=add_eos if isinstance(add_eos, bool) else None,
        )

    def _special(self) -> dict[str, SpecialToken]:
        tokens = self.header.metadata.get("tokenizer.ggml.tokens")
        special = {}
        for role, key in _ROLES.items():
            index = self.values.get(f"tokenizer.ggml.{key}_token_id")
            # Files without such a token hold -1 or 2^32 - 1.
            if type(index) is not int or not 0 <= index < (self._tokens() or 2**31):
                continue
            text = self.header.string(tokens, index) if isinstance(tokens, GgufArray) else None
            special[role] = SpecialToken(index, text)
        return special

    @property
    def chat_templates(self) -> tuple[ChatTemplate, ...]:
        key = "tokenizer.chat_template"
        return tuple(
            chat_template("default" if name == key else name.removeprefix(f"{key}."), text)
            for name, text in self.values.items()
            if isinstance(text, str) and (name == key or name.startswith(f"{key}."))
        )

    @property
    def label(self) -> str | None:
        """``Q4_K_M`` and the like, where the file says."""
        value = self.values.get("general.file_type")
        return FILE_TYPES.get(value) if type(value) is int else None

    @property
    def adapter(self) -> Adapter | None:
        kind = get_text(self.values, "adapter.type")
        if kind is None:
            return None
        downs = [
            each for each in self.header.tensors if each.name.endswith(".lora_a") and each.shape
        ]
        names = {each.name.removesuffix(".weight.lora_a").split(".")[-1] for each in downs}
        return Adapter(
            type=kind,
            rank=max((each.shape[0] for each in downs), default=None),
            alpha=get_number(self.values, "adapter.lora.alpha"),
            target_modules=tuple(sorted(names)),
            base_model=get_text(
                self.values, "general.base_model.0.repo_url", "general.base_model.0.name"
            ),
        )

    @property
    def kind(self) -> str:
        if get_text(self.values, "adapter.type"):
            return "adapter"
        if self.family == "clip":
            return "projector"
        return get_text(self.values, "general.type") or "model"

    @property
    def name(self) -> str | None:
        return get_text(self.values, "general.name", "general.basename")

    @property
    def licence(self) -> str | None:
        return get_text(self.values, "general.license", "general.license.name")

    @property
    def parts(self) -> int | None:
        """How many files the model is split into."""
        return get_count(self.values, "split.count")
