"""Which cache each layer keeps, from what configurations say about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from llmserve.modelfile.types import Attention, AttentionKind, KvGroup

MAX_LAYERS = 10_000


@dataclass(frozen=True, slots=True)
class Latent:
    """Multi-head latent attention: one compressed vector for all heads."""

    rank: int
    rope_dim: int


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """What is known before it is put together. ``kv_heads`` per layer, 0 where a layer
    keeps no such cache; ``windowed`` per layer."""

    heads: int
    kv_heads: Sequence[int]
    key_dim: int
    value_dim: int
    windowed: Sequence[bool]
    window: int | None = None
    latent: Latent | None = None
    recurrent: int = 0
    causal: bool = True


def attention_of(plan: LayerPlan) -> Attention:
    """Group equal layers, and give the whole its name."""
    groups: Counter[tuple[int, int, int, int | None]] = Counter()
    for kv_heads, windowed in zip(plan.kv_heads, plan.windowed, strict=True):
        if kv_heads == 0:
            continue
        window = plan.window if windowed else None
        if plan.latent:
            groups[1, plan.latent.rank + plan.latent.rope_dim, 0, window] += 1
        else:
            groups[kv_heads, plan.key_dim, plan.value_dim, window] += 1
    most = max(plan.kv_heads, default=0)
    return Attention(
        kind=_kind(plan, most),
        heads=plan.heads,
        kv_heads=most,
        head_dim=plan.key_dim,
        kv=tuple(KvGroup(count, *shape) for shape, count in groups.items()),
        sliding_window=plan.window if any(plan.windowed) else None,
        recurrent_layers=plan.recurrent,
        causal=plan.causal,
    )


def _kind(plan: LayerPlan, kv_heads: int) -> AttentionKind:
    if kv_heads == 0:
        return AttentionKind.NONE
    if plan.latent:
        return AttentionKind.MLA
    if kv_heads >= plan.heads:
        return AttentionKind.MHA
    return AttentionKind.MQA if kv_heads == 1 else AttentionKind.GQA


def every(layers: int, period: int, *, full_last: bool = True) -> list[bool]:
    """Windowed layers where each ``period``-th is not: the last of each run of
    ``period``, or the first."""
    full = period - 1 if full_last else 0
    return [period > 0 and layer % period != full for layer in range(layers)]
