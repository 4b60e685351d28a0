"""A tiny GGUF file with everything in it that a conversion can lose."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|eot|>\n{% endfor %}"
LAYERS, HIDDEN, HEADS, FEED_FORWARD = 1, 32, 2, 64
SPECIAL = ("<|begin|>", "<|end|>", "<|im_start|>", "<|eot|>", "<|pad|>")


def byte_alphabet() -> list[str]:
    """The 256 characters that stand for bytes in a byte-level vocabulary."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return list(bytes_to_unicode().values())


def write_gguf(path: Path, architecture: str = "llama", freqs: list[float] | None = None) -> Path:
    """A one-layer model with a Llama 3 tokenizer, BOS on, an end-of-turn token, a plain
    added token (``<think>``) and, with ``freqs``, a scaled rotary embedding."""
    tokens = [*SPECIAL, *byte_alphabet(), "ab", "abc", "<think>"]
    types = [3] * len(SPECIAL) + [1] * 258 + [4]
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_context_length(512)
    writer.add_block_count(LAYERS)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_freq_base(500_000.0)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    # "abc" cannot be reached by merges: it is one token only if whole words are kept.
    writer.add_token_merges(["a b"])
    for name, index in (("bos", 0), ("eos", 1), ("eot", 3), ("pad", 4)):
        getattr(writer, f"add_{name}_token_id")(index)
    writer.add_add_bos_token(True)
    writer.add_chat_template(TEMPLATE)
    writer.add_float32("general.sampling.temp", 0.5)
    random = np.random.default_rng(1)

    def tensor(name: str, *shape: int) -> None:
        writer.add_tensor(name, random.standard_normal(shape, dtype=np.float32) * 0.1)

    tensor("token_embd.weight", len(tokens), HIDDEN)
    tensor("output.weight", len(tokens), HIDDEN)
    tensor("output_norm.weight", HIDDEN)
    for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
        tensor(f"blk.0.{part}.weight", HIDDEN, HIDDEN)
    tensor("blk.0.ffn_gate.weight", FEED_FORWARD, HIDDEN)
    tensor("blk.0.ffn_up.weight", FEED_FORWARD, HIDDEN)
    tensor("blk.0.ffn_down.weight", HIDDEN, FEED_FORWARD)
    tensor("blk.0.attn_norm.weight", HIDDEN)
    tensor("blk.0.ffn_norm.weight", HIDDEN)
    if freqs is not None:
        writer.add_tensor("rope_freqs.weight", np.array(freqs, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
