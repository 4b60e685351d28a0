"""Models for tests: small enough to load in seconds, made without importing torch."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import numpy as np

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")

HIDDEN = 64
INTERMEDIATE = 128
HEADS = 4
KV_HEADS = 2
HEAD_DIM = 32  # the narrowest head that vLLM's CPU attention takes
MAX_POSITIONS = 8192
ADAPTER_RANK = 8


def tiny_model(demo: Path, target: Path) -> Path:
    """Write a random one-layer Llama with the demo model's tokenizer into ``target``.

    ``demo`` is the folder of the converted demo model. The weights are seeded: the same
    call gives the same bytes. The text is nonsense, but greedy decoding repeats itself:
    the output head is wide enough (logits with a standard deviation of about 4) that the
    first two candidates never tie in bfloat16, and flat enough that sampling varies.
    A folder that is already complete is left as it is.
    """
    if (target / "config.json").is_file():
        return target
    target.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        shutil.copyfile(demo / name, target / name)
    base = json.loads((demo / "config.json").read_text(encoding="utf-8"))
    _save_bfloat16(_weights(base["vocab_size"]), target / "model.safetensors")
    # The configuration comes last: it is what marks the folder as complete.
    (target / "config.json").write_text(json.dumps(_config(base), indent=2), encoding="utf-8")
    return target


def tiny_adapter(tiny: Path, target: Path) -> Path:
    """Write a LoRA adapter for a ``tiny_model`` into ``target``: rank 8 on the query
    projection, strong enough that the base model's answers change."""
    target.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(7)
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    down = random.standard_normal((ADAPTER_RANK, HIDDEN), dtype=np.float32)
    up = random.standard_normal((HEADS * HEAD_DIM, ADAPTER_RANK), dtype=np.float32)
    tensors = {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    _save_bfloat16(tensors, target / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(tiny),
        "r": ADAPTER_RANK,
        "lora_alpha": 2 * ADAPTER_RANK,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": ["q_proj"],
    }
    (target / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return target


def _config(base: dict[str, object]) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": 1,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "max_position_embeddings": MAX_POSITIONS,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        "tie_word_embeddings": False,
        "vocab_size": base["vocab_size"],
        "bos_token_id": base["bos_token_id"],
        "eos_token_id": base["eos_token_id"],
        "pad_token_id": base["pad_token_id"],
    }


def _weights(vocab_size: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(2026)

    def matrix(rows: int, columns: int, scale: float) -> np.ndarray:
        return random.standard_normal((rows, columns), dtype=np.float32) * scale

    ones = np.ones(HIDDEN, dtype=np.float32)
    layer = "model.layers.0"
    return {
        "model.embed_tokens.weight": matrix(vocab_size, HIDDEN, 1.0),
        f"{layer}.input_layernorm.weight": ones,
        f"{layer}.self_attn.q_proj.weight": matrix(HEADS * HEAD_DIM, HIDDEN, 0.1),
        f"{layer}.self_attn.k_proj.weight": matrix(KV_HEADS * HEAD_DIM, HIDDEN, 0.1),
        f"{layer}.self_attn.v_proj.weight": matrix(KV_HEADS * HEAD_DIM, HIDDEN, 0.1),
        f"{layer}.self_attn.o_proj.weight": matrix(HIDDEN, HEADS * HEAD_DIM, 0.1),
        f"{layer}.post_attention_layernorm.weight": ones,
        f"{layer}.mlp.gate_proj.weight": matrix(INTERMEDIATE, HIDDEN, 0.1),
        f"{layer}.mlp.up_proj.weight": matrix(INTERMEDIATE, HIDDEN, 0.1),
        f"{layer}.mlp.down_proj.weight": matrix(HIDDEN, INTERMEDIATE, 0.1),
        "model.norm.weight": ones,
        "lm_head.weight": matrix(vocab_size, HIDDEN, 0.5),
    }


def _save_bfloat16(tensors: dict[str, np.ndarray], path: Path) -> None:
    """The SafeTensors format by hand: numpy has no bfloat16, and torch is slow to import."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + 2 * tensor.size
        header[name] = {
            "dtype": "BF16",
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            # bfloat16 is the upper half of a float32.
            file.write((tensor.view(np.uint32) >> 16).astype("<u2").tobytes())
