"""Random models with the attention layouts that the demo model does not have: run as a
program with a folder, it writes one folder for each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

COMMON = {
    "vocab_size": 1000,  # no multiple of 64: vLLM pads it
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}
WINDOW: dict[str, Any] = {"head_dim": 64, "sliding_window": 512}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("qwen2", {"num_hidden_layers": 3, "tie_word_embeddings": True}),
    "gemma3": ("gemma3_text", {"num_hidden_layers": 7, **WINDOW}),
    "deepseek": (
        "deepseek_v2",
        {
            "num_hidden_layers": 2,
            "num_key_value_heads": 4,
            "kv_lora_rank": 64,
            "q_lora_rank": None,
            "qk_nope_head_dim": 32,
            "qk_rope_head_dim": 32,
            "v_head_dim": 32,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_shared_experts": 1,
            "moe_intermediate_size": 64,
            "first_k_dense_replace": 1,
        },
    ),
}


def write_random_models(root: Path) -> None:
    """One folder for each, of its name."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    for name, (kind, values) in MODELS.items():
        config = AutoConfig.for_model(kind, **{**COMMON, **values})
        model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
        model.save_pretrained(root / name)
