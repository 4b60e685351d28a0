"""How much KV cache a sequence takes, as vLLM cuts it into blocks.

Outside facts (vLLM 0.32, ``v1/core/kv_cache_utils.py`` and ``v1/kv_cache_interface.py``,
checked against a running engine in ``tests/e2e/test_models.py``): a block holds the same
number of tokens in each layer; layers of one kind share a table of blocks; where kinds mix
(sliding windows beside full attention), layers are put into groups of equal size, and what
is missing in the last group is padding that takes memory all the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from llmserve.modelfile.types import Attention, AttentionKind, KvGroup

_MUCH_LARGER = 1.5
"""Kinds of layers that differ by less in number make groups of the larger number."""


@dataclass(frozen=True, slots=True)
class CacheShape:
    """``element_bytes``: 2, or 1 for an 8-bit cache. ``in_flight_tokens``: tokens being
    computed at once, which sliding layers keep beside their window. vLLM's blocks have 16
    tokens on GPUs and 128 on CPUs (16 for latent attention)."""

    element_bytes: int = 2
    block_tokens: int = 16
    in_flight_tokens: int = 16_384
    tensor_parallel: int = 1


def bytes_per_token(attention: Attention, shape: CacheShape) -> int:
    """Bytes on one device of a token that every layer keeps."""
    return sum(_token_bytes(group, attention, shape) for group in attention.kv)


def bytes_per_sequence(attention: Attention, tokens: int, shape: CacheShape) -> int:
    """Bytes on one device of a sequence of ``tokens`` tokens, unused parts of its blocks
    and padding layers included. 0 for models without a cache."""
    if not attention.causal:
        return 0
    counts = [group.layers for group in attention.kv]
    size = group_layers(counts)
    total = 0
    for group in attention.kv:
        layers = math.ceil(group.layers / size) * size
        per_layer = _token_bytes(group, attention, shape) // group.layers
        total += layers * per_layer * shape.block_tokens * _blocks(group, tokens, shape)
    return total


def group_layers(counts: list[int]) -> int:
    """Layers in each group, where there are ``counts`` of each kind."""
    if not counts:
        return 1
    least, most = min(counts), max(counts)
    return most if most < _MUCH_LARGER * least else least


def _token_bytes(group: KvGroup, attention: Attention, shape: CacheShape) -> int:
    """In all layers of the group. Heads are divided among devices; with fewer heads than
    devices each keeps one, and a latent cache is kept by all of them."""
    heads = group.kv_heads
    if attention.kind is not AttentionKind.MLA:
        heads = max(1, heads // shape.tensor_parallel)
    return group.layers * heads * (group.key_dim + group.value_dim) * shape.element_bytes


def _blocks(group: KvGroup, tokens: int, shape: CacheShape) -> int:
    if group.window is None:
        return math.ceil(tokens / shape.block_tokens)
    kept = min(tokens, group.window - 1 + shape.in_flight_tokens)
    # A window seldom begins where a block does.
    return math.ceil(kept / shape.block_tokens) + 1
