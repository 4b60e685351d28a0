"""Can this machine serve that model? Arithmetic over headers; nothing is loaded.

What is exact: weights in memory, and what a sequence takes of the KV cache (compared with
vLLM's own figures in ``tests/e2e/test_models.py``). What is assumed: the memory that the
engine needs for itself, for activations and for sampling (``reserved_bytes``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from llmserve.modelfile.kvcache import CacheShape, bytes_per_sequence, bytes_per_token
from llmserve.modelfile.memory import Dtype, is_packed, loaded_bytes, weights_by_dtype
from llmserve.modelfile.servable import refusal
from llmserve.modelfile.types import AttentionKind, ModelFile

GPU_SHARE = 0.92
"""What vLLM takes of a GPU unless told otherwise (``gpu_memory_utilization``)."""

_GPU_RUNTIME = 1_500_000_000
_CPU_RUNTIME = 2_500_000_000
"""Libraries, graphs and buffers on a GPU; three processes with torch on a CPU."""

_BATCHED_TOKENS = 8192
_SAMPLED = 256
_SHORTEST = 512


@dataclass(frozen=True, slots=True)
class Ask:
    """What is to be served on what. ``memory_bytes`` is that of each device, and
    ``tensor_parallel`` says how many of them share the model. ``context`` is the length of
    each sequence in tokens (``None``: the model's own), ``sequences`` how many of them
    there must be room for at once. ``kv_bytes`` is the width of an element of the KV cache
    (2, or 1 for fp8). On a CPU (``gpu`` false) all is one device."""

    memory_bytes: int
    gpu: bool = True
    tensor_parallel: int = 1
    context: int | None = None
    sequences: int = 1
    dtype: Dtype = Dtype.BF16
    kv_bytes: int = 2


@dataclass(frozen=True, slots=True)
class Verdict:
    """``nearest``: the configuration closest to what was asked that can be served, in
    words, and ``nearest_ask`` as values; ``None`` where there is none, or no need."""

    fits: bool
    reason: str
    nearest: str | None = None
    nearest_ask: Ask | None = None


@dataclass(frozen=True, slots=True)
class Estimate:
    """Sizes in bytes; on each device where the name says so. ``cache_bytes``: what is left
    for the KV cache. ``sequences``: how many of ``context`` tokens fit in it together, and
    ``longest`` how long a single one can be; both ``None`` without a KV cache.
    ``assumptions``: what the figures rest on, as sentences."""

    ask: Ask
    weights: Mapping[str, int]
    weights_per_device: int
    kv_bytes_per_token: int
    kv_bytes_per_sequence: int
    reserved_bytes: int
    cache_bytes: int
    context: int | None
    sequences: float | None
    longest: int | None
    verdict: Verdict
    assumptions: tuple[str, ...]


def estimate(model: ModelFile, ask: Ask) -> Estimate:
    """What serving ``model`` as asked takes, and whether it can be done."""
    figures = _Figures(model, ask)
    return Estimate(
        ask=ask,
        weights=weights_by_dtype(model),
        weights_per_device=figures.weights,
        kv_bytes_per_token=figures.token_bytes,
        kv_bytes_per_sequence=figures.sequence_bytes,
        reserved_bytes=figures.reserved,
        cache_bytes=max(0, figures.room),
        context=figures.context,
        sequences=figures.sequences,
        longest=figures.longest(),
        verdict=_verdict(figures),
        assumptions=_assumptions(model, ask),
    )


class _Figures:
    """The sums for one configuration."""

    def __init__(self, model: ModelFile, ask: Ask) -> None:
        self.model, self.ask = model, ask
        self.trained = model.dimensions.context_length
        self.context = ask.context or self.trained
        devices = ask.tensor_parallel
        latent = model.attention is not None and model.attention.kind is AttentionKind.MLA
        self.shape = CacheShape(
            element_bytes=ask.kv_bytes,
            block_tokens=16 if ask.gpu or latent else 128,
            in_flight_tokens=2 * _BATCHED_TOKENS if ask.gpu else 4096,
            tensor_parallel=devices,
        )
        self.weights = loaded_bytes(model, ask.dtype, devices=devices)
        self.reserved = _reserved(model, ask)
        share = GPU_SHARE if ask.gpu else 1.0
        self.room = int(share * ask.memory_bytes) - self.weights - self.reserved
        attention = model.attention
        self.has_cache = attention is not None and attention.causal and bool(attention.kv)
        self.token_bytes = (
            bytes_per_token(attention, self.shape) if attention and self.has_cache else 0
        )
        self.sequence_bytes = self.of(self.context) if self.context else 0

    def of(self, tokens: int) -> int:
        """Cache bytes of a sequence of this length."""
        attention = self.model.attention
        if attention is None or not self.has_cache:
            return 0
        return bytes_per_sequence(attention, tokens, self.shape)

    @property
    def sequences(self) -> float | None:
        if not self.sequence_bytes:
            return None
        return round(max(0, self.room) / self.sequence_bytes, 2)

    def longest(self) -> int | None:
        """The longest single sequence that fits, within what the model was trained for."""
        if not self.has_cache or not self.context:
            return None
        low, high = 0, self.trained or self.context
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.of(middle) <= self.room else (low, middle - 1)
        return low

    @property
    def fits(self) -> bool:
        return self.room >= self.ask.sequences * self.sequence_bytes and self.room >= 0

    @property
    def needed(self) -> int:
        """Memory of each device with which it would fit."""
        share = GPU_SHARE if self.ask.gpu else 1.0
        total = self.weights + self.reserved + self.ask.sequences * self.sequence_bytes
        return int(total / share) + 1


def _reserved(model: ModelFile, ask: Ask) -> int:
    """Memory of the engine itself: a rule of thumb."""
    if not ask.gpu:
        return _CPU_RUNTIME
    size = model.dimensions
    width = 8 * (size.hidden_size or 0)
    width += 3 * (size.intermediate_size or 0) // ask.tensor_parallel
    logits = 2 * 4 * _SAMPLED * (size.vocab_size or 0)
    return _GPU_RUNTIME + 2 * _BATCHED_TOKENS * width + logits


def _verdict(figures: _Figures) -> Verdict:
    model, ask = figures.model, figures.ask
    if (reason := refusal(model)) is not None:
        return Verdict(False, reason)
    if not _divides(model, ask.tensor_parallel):
        reason = f"Its attention heads cannot be divided among {ask.tensor_parallel} devices."
        return _no(figures, reason)
    if ask.context and figures.trained and ask.context > figures.trained:
        reason = f"It was made for {figures.trained:,} tokens of context, not {ask.context:,}."
        return _no(figures, reason)
    if figures.fits:
        return Verdict(True, _why_it_fits(figures))
    return _no(figures, _why_not(figures))


def _why_it_fits(figures: _Figures) -> str:
    weights = f"{in_gb(figures.weights)} of weights"
    if not figures.sequence_bytes:
        return f"{weights} leave {in_gb(figures.room)} of {in_gb(figures.ask.memory_bytes)}."
    return (
        f"{weights} leave {in_gb(figures.room)} for the KV cache:"
        f" {figures.sequences:,.1f} sequences of {figures.context:,} tokens at once."
    )


def _why_not(figures: _Figures) -> str:
    memory = in_gb(figures.ask.memory_bytes)
    if figures.room < 0:
        return (
            f"{in_gb(figures.weights)} of weights and {in_gb(figures.reserved)} for the engine"
            f" do not fit into {memory}."
        )
    return (
        f"{in_gb(figures.weights)} of weights leave {in_gb(figures.room)} of {memory} for the KV"
        f" cache, and {figures.ask.sequences} x {figures.context:,} tokens need"
        f" {in_gb(figures.ask.sequences * figures.sequence_bytes)}."
    )


def _no(figures: _Figures, reason: str) -> Verdict:
    model, ask = figures.model, figures.ask
    for words, other in _others(figures):
        if _divides(model, other.tensor_parallel) and _Figures(model, other).fits:
            return Verdict(False, reason, words, other)
    if not _divides(model, ask.tensor_parallel):
        ask = replace(ask, tensor_parallel=1)
    context = min(filter(None, (ask.context, figures.trained)), default=None)
    figures = _Figures(model, replace(ask, context=context))
    needed = replace(figures.ask, memory_bytes=figures.needed)
    return Verdict(False, reason, f"{in_gb(figures.needed)} of memory on each device", needed)


def _divides(model: ModelFile, devices: int) -> bool:
    """Whether vLLM can share the model among so many devices: each has the same number of
    heads, and whole heads of keys and values, or one that others have as well."""
    attention = model.attention
    if attention is None or not attention.heads:
        return True
    kv, latent = attention.kv_heads or 1, attention.kind is AttentionKind.MLA
    return attention.heads % devices == 0 and (latent or kv % devices == 0 or devices % kv == 0)


def _others(figures: _Figures) -> list[tuple[str, Ask]]:
    """Configurations beside the one that was asked for, the least change first."""
    ask = figures.ask
    if ask.context and figures.trained and ask.context > figures.trained:
        ask = replace(ask, context=figures.trained)
    found = [(f"a context of {ask.context:,} tokens" if ask.context else "the same", ask)]
    if ask.kv_bytes > 1:
        found.append(("an 8-bit KV cache (fp8)", replace(ask, kv_bytes=1)))
    longest = figures.longest() or 0
    if longest >= _SHORTEST and ask.sequences == 1:
        shorter = longest // 256 * 256
        found.append((f"a context of {shorter:,} tokens", replace(ask, context=shorter)))
    found += _fewer_or_more_devices(ask)
    if not is_packed(figures.model) and ask.dtype is not Dtype.INT4:
        for dtype, bits in ((Dtype.FP8, 8), (Dtype.INT4, 4)):
            found.append((f"weights of {bits} bits", replace(ask, dtype=dtype, kv_bytes=1)))
    return found


def _fewer_or_more_devices(ask: Ask) -> list[tuple[str, Ask]]:
    if not ask.gpu:
        return []
    return [
        (
            f"{count} device{'s' if count > 1 else ''} like this one",
            replace(ask, tensor_parallel=count),
        )
        for count in (2, 4, 8, 1)
        if count != ask.tensor_parallel and (count > ask.tensor_parallel or count == 1)
    ]


def _assumptions(model: ModelFile, ask: Ask) -> tuple[str, ...]:
    found = []
    if ask.gpu:
        found.append(f"vLLM takes {GPU_SHARE:.0%} of each GPU (gpu_memory_utilization).")
        found.append("Memory for the engine and for activations is a rule of thumb.")
    else:
        found.append("2.5 GB are kept for the processes; the rest can be cache (cpu_kv_cache_gib).")
    if model.attention is None:
        found.append("Its attention layout is not known: the KV cache is not counted.")
    elif model.attention.recurrent_layers:
        found.append(f"The state of {model.attention.recurrent_layers} layers is not counted.")
    if ask.tensor_parallel > 1:
        found.append("Matrices are divided among the devices, norms and biases are not.")
    return tuple(found)


def in_gb(size: int) -> str:
    """Bytes for people: ``1.5 GB``, ``98 MB``."""
    return f"{size / 1e9:,.1f} GB" if abs(size) >= 1e9 else f"{size / 1e6:,.0f} MB"
