"""What Ollama's ``POST /api/show`` says of a model, for tools that expect it.

The shape is that of Ollama's API reference (docs/api.md, "Show Model Information"): long
arrays are null unless ``verbose`` is set; here they are then given by their first items,
for they are not read in full.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from llmserve.modelfile import ArraySummary, Format, ModelFile


def show(model: ModelFile, args: Mapping[str, Any]) -> dict[str, Any]:
    """``args``: ``verbose``, ``modified`` (Unix seconds) and ``name``."""
    family = model.family or "unknown"
    template = next((each.text for each in model.chat_templates), "")
    return {
        "license": model.licence or "",
        "modelfile": f"# Served by llmserve; this is no Modelfile.\nFROM {args.get('name', '')}\n",
        "parameters": _parameters(model),
        "template": template,
        "details": {
            "parent_model": (model.adapter and model.adapter.base_model) or "",
            "format": model.format.value,
            "family": family,
            "families": [family],
            "parameter_size": parameter_size(model.parameters.total),
            "quantization_level": model.quantization.label,
        },
        "model_info": _model_info(model, family, verbose=bool(args.get("verbose"))),
        "capabilities": _capabilities(model, template),
        "modified_at": datetime.fromtimestamp(args.get("modified", 0), UTC).isoformat(),
    }


def parameter_size(count: int) -> str:
    """``8.0B``, ``134.52M``."""
    if count >= 10**9:
        return f"{count / 1e9:.1f}B"
    return f"{count / 1e6:.2f}M" if count >= 10**6 else f"{count / 1e3:.2f}K"


def _parameters(model: ModelFile) -> str:
    special = model.tokenizer.special if model.tokenizer else {}
    stops = [special[role].text for role in ("eos", "eot") if role in special]
    return "\n".join(f'stop "{text}"' for text in dict.fromkeys(stops) if text)


def _model_info(model: ModelFile, family: str, *, verbose: bool) -> dict[str, Any]:
    info: dict[str, Any] = {}
    if model.format is Format.GGUF:
        for key, value in model.metadata.items():
            if key == "tokenizer.chat_template":
                continue
            if isinstance(value, ArraySummary):
                info[key] = list(value.first) if verbose else None
            else:
                info[key] = value
    else:
        info = _names_of_gguf(model, family)
    return info | {"general.parameter_count": model.parameters.total}


def _names_of_gguf(model: ModelFile, family: str) -> dict[str, Any]:
    """The facts that clients look for, under the names that they know."""
    size, attention = model.dimensions, model.attention
    info = {
        "general.architecture": family,
        "general.basename": model.name,
        f"{family}.context_length": size.context_length,
        f"{family}.embedding_length": size.hidden_size,
        f"{family}.block_count": size.layers,
        f"{family}.feed_forward_length": size.intermediate_size,
        f"{family}.vocab_size": size.vocab_size,
        f"{family}.attention.head_count": attention and attention.heads,
        f"{family}.attention.head_count_kv": attention and attention.kv_heads,
        f"{family}.rope.freq_base": model.rope and model.rope.theta,
    }
    return {key: value for key, value in info.items() if value is not None}


def _capabilities(model: ModelFile, template: str) -> list[str]:
    if model.attention is not None and not model.attention.causal:
        return ["embedding"]
    found = ["completion"]
    if "tools" in template:
        found.append("tools")
    return found
