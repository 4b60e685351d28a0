"""What a Hugging Face ``config.json`` says about its model.

The names that different families use for one thing stand side by side; the first that is
there counts. APR's metadata use the same names and are read here as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmserve.modelfile.attention import MAX_LAYERS, Latent, LayerPlan, attention_of, every
from llmserve.modelfile.jsontext import get_count, get_number, get_text, is_count
from llmserve.modelfile.types import Attention, Dimensions, Experts, Rope

_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers")
_HIDDEN = ("hidden_size", "n_embd", "d_model", "hidden_dim", "dim")
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "n_head_kv")
_CONTEXT = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "max_sequence_length",
    "n_ctx",
    "context_length",
)
_INNER = ("intermediate_size", "n_inner", "ffn_dim", "d_ff", "ffn_hidden_size")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_ACTIVE = ("num_experts_per_tok", "moe_topk", "top_k_experts", "num_selected_experts", "moe_k")
_SHARED = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts")
_ENCODERS = frozenset({"bert", "roberta", "xlm-roberta", "distilbert", "mpnet", "electra"})
_ENCODERS |= {"deberta", "deberta-v2", "nomic_bert", "modernbert", "camembert", "albert", "new"}
_NO_ATTENTION = frozenset({"mamba", "mamba2", "falcon_mamba", "rwkv"})
_WINDOW_PERIODS = {"gemma2": 2, "gemma3_text": 6, "gemma3": 6, "cohere2": 4, "gpt_oss": 2}
_INNER_CONFIGS = ("text_config", "llm_config", "language_config", "thinker_config", "decoder")


@dataclass(frozen=True, slots=True)
class HfFacts:
    """``top`` is the whole file, ``values`` the part about the language model."""

    top: Mapping[str, Any]
    values: Mapping[str, Any]

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> HfFacts:
        values = config
        for _ in range(3):
            inner = next(
                (values[k] for k in _INNER_CONFIGS if isinstance(values.get(k), dict)), None
            )
            if inner is None:
                break
            values = {**{k: values[k] for k in ("tie_word_embeddings",) if k in values}, **inner}
        return cls(config, values)

    @property
    def family(self) -> str | None:
        return get_text(self.top, "model_type", "architecture")

    @property
    def architecture(self) -> str | None:
        names = self.top.get("architectures")
        if isinstance(names, list) and names and isinstance(names[0], str):
            return names[0]
        return get_text(self.top, "hf_architecture") or self.family

    @property
    def dimensions(self) -> Dimensions:
        return Dimensions(
            layers=self.layers,
            hidden_size=get_count(self.values, *_HIDDEN),
            intermediate_size=get_count(self.values, *_INNER),
            vocab_size=get_count(self.values, "vocab_size", "n_vocab"),
            context_length=get_count(self.values, *_CONTEXT),
        )

    @property
    def layers(self) -> int | None:
        layers = get_count(self.values, *_LAYERS)
        return layers if layers is not None and layers <= MAX_LAYERS else None

    @property
    def _model_type(self) -> str:
        return get_text(self.values, "model_type") or self.family or ""

    @property
    def attention(self) -> Attention | None:
        layers, heads = self.layers, get_count(self.values, *_HEADS)
        if layers and self._model_type in _NO_ATTENTION:
            return attention_of(LayerPlan(0, (), 0, 0, (), recurrent=layers))
        if not layers or not heads:
            return None
        kinds = self._layer_types(layers)
        kv = self._kv_heads(heads)
        kv_heads = [0 if kind in _RECURRENT else kv for kind in kinds]
        key_dim = self._head_dim(heads)
        return attention_of(
            LayerPlan(
                heads=heads,
                kv_heads=kv_heads,
                key_dim=key_dim,
                value_dim=get_count(self.values, "v_head_dim") or key_dim,
                windowed=[kind in _WINDOWED for kind in kinds],
                window=self._window(),
                latent=self._latent(),
                recurrent=sum(kind in _RECURRENT for kind in kinds),
                causal=self._model_type not in _ENCODERS or self.values.get("is_decoder") is True,
            )
        )

    def _kv_heads(self, heads: int) -> int:
        if self._model_type == "falcon" and not self.values.get("new_decoder_architecture"):
            return 1 if self.values.get("multi_query", True) else heads
        nested = self.values.get("attn_config")
        if isinstance(nested, dict) and (found := get_count(nested, "kv_n_heads")):
            return found
        if self.values.get("multi_query") is True and self._model_type == "gpt_bigcode":
            return 1
        return get_count(self.values, *_KV_HEADS) or heads

    def _head_dim(self, heads: int) -> int:
        hidden = get_count(self.values, *_HIDDEN) or 0
        nope = get_count(self.values, "qk_nope_head_dim")
        if nope:
            return nope + (get_count(self.values, "qk_rope_head_dim") or 0)
        return get_count(self.values, "head_dim", "attention_head_dim", "kv_channels") or (
            hidden // heads
        )

    def _window(self) -> int | None:
        if self.values.get("use_sliding_window") is False:
            return None
        return get_count(self.values, "sliding_window", "attention_chunk_size", "window_size")

    def _layer_types(self, layers: int) -> list[str]:
        """One word for each layer, from whatever the configuration has."""
        kinds = self.values.get("layer_types", self.values.get("layers_block_type"))
        if isinstance(kinds, list) and len(kinds) >= layers:
            return [each if isinstance(each, str) else "" for each in kinds[:layers]]
        interval = get_count(self.values, "full_attention_interval")
        if interval:
            return ["linear_attention" if each else "" for each in every(layers, interval)]
        period = get_count(self.values, "attn_layer_period")
        if period:
            offset = self.values.get("attn_layer_offset")
            offset = offset if type(offset) is int else 0
            return ["" if each % period == offset else "mamba" for each in range(layers)]
        return self._windows(layers)

    def _windows(self, layers: int) -> list[str]:
        if self._window() is None:
            return [""] * layers
        period = get_count(self.values, "sliding_window_pattern", "_sliding_window_pattern")
        period = period or _WINDOW_PERIODS.get(self._model_type)
        if period:
            return [_SLIDING if each else "" for each in every(layers, period)]
        if "use_sliding_window" in self.values:
            # Qwen: the layers from max_window_layers on.
            first = self.values.get("max_window_layers")
            first = first if type(first) is int else 0
            return [_SLIDING if layer >= first else "" for layer in range(layers)]
        return [_SLIDING] * layers

    def _latent(self) -> Latent | None:
        rank = get_count(self.values, "kv_lora_rank")
        if rank is None:
            return None
        return Latent(rank, get_count(self.values, "qk_rope_head_dim") or 0)

    @property
    def rope(self) -> Rope | None:
        scaling: Mapping[str, Any] = {}
        for key in ("rope_parameters", "rope_scaling"):
            found = self.values.get(key)
            if isinstance(found, dict) and found:
                # Per kind of layer in models that mix them: the one that sees everything.
                nested = found.get("full_attention")
                scaling = nested if isinstance(nested, dict) else found
                break
        kind = get_text(scaling, "rope_type", "type")
        rope = Rope(
            theta=get_number(self.values, "rope_theta", "rotary_emb_base")
            or get_number(scaling, "rope_theta"),
            dimensions=get_count(self.values, "qk_rope_head_dim", "rotary_dim"),
            scaling=None if kind == "default" else kind,
            factor=get_number(scaling, "factor"),
            original_context_length=get_count(scaling, "original_max_position_embeddings"),
        )
        return None if rope == Rope() else rope

    @property
    def experts(self) -> Experts | None:
        nested = self.values.get("ffn_config")
        values = {**nested, **self.values} if isinstance(nested, dict) else self.values
        total = get_count(values, *_EXPERTS)
        if total is None or total < 2:
            return None
        active = get_count(values, *_ACTIVE, "moe_top_k") or total
        return Experts(total, min(active, total), get_count(values, *_SHARED) or 0)

    @property
    def quantization(self) -> tuple[str, int] | None:
        """Method and bits per weight."""
        found = self.top.get("quantization_config", self.values.get("quantization_config"))
        if not isinstance(found, dict):
            return None
        method = get_text(found, "quant_method") or "unknown"
        if method == "bitsandbytes":
            return method, 4 if found.get("load_in_4bit") or found.get("_load_in_4bit") else 8
        if method == "compressed-tensors":
            return method, _group_bits(found) or 8
        bits = get_count(found, "bits", "w_bit", "weight_bits")
        return method, bits if bits and bits <= 64 else _METHOD_BITS.get(method, 8)


_SLIDING = "sliding_attention"
_WINDOWED = frozenset({_SLIDING, "chunked_attention", "local_attention"})
_RECURRENT = frozenset({"linear_attention", "mamba", "mamba2", "conv", "recurrent", "rwkv"})
_METHOD_BITS = {"mxfp4": 4, "awq": 4, "gptq": 4, "nvfp4": 4, "fp8": 8, "fbgemm_fp8": 8}


def _group_bits(config: Mapping[str, Any]) -> int | None:
    groups = config.get("config_groups")
    for group in groups.values() if isinstance(groups, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        if isinstance(weights, dict) and is_count(bits := weights.get("num_bits"), 64):
            return bits
    return None
