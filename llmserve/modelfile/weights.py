"""Counting weights: how many, how many at work for one token, and in how many bits."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from llmserve.modelfile.types import (
    DtypeShare,
    Experts,
    Parameters,
    Quantization,
    TensorInfo,
)

_ROUTED = re.compile(
    r"(?:^|\.)experts\.(?:[0-9]+\.|[a-z])|ffn_(?:gate|up|down|gate_up)_exps(?:\.|$)"
)
"""Tensors of which a token uses only a few experts' share (not routers, not shared ones)."""

_SCALES = re.compile(
    r"(?:\.|_)(?:scales?|scale_inv|qzeros|zeros|g_idx|absmax|quant_map|nested_absmax"
    r"|nested_quant_map|quant_state[a-z0-9_.]*|weight_shape|weight_zero_point|zero_point"
    r"|weight_g_idx|weight_scale[a-z0-9_]*|input_scale|input_global_scale)$"
)
"""What quantization adds to a tensor: no weights of the model."""

_PACKED = re.compile(r"(?:qweight|weight_packed|_blocks|\.weight)$")


_INTEGERS = {"I8": 8, "U8": 8, "I16": 16, "U16": 16, "I32": 32, "U32": 32, "I64": 64, "U64": 64}
_INTEGERS |= {"BOOL": 8}


def weigh(
    tensors: Sequence[TensorInfo],
    experts: Experts | None = None,
    *,
    label: str | None = None,
    method: tuple[str, int] | None = None,
) -> tuple[Parameters, Quantization]:
    """Count all weights, and what they are stored as.

    ``method`` and its bits per weight come from the configuration of a model that packs
    several weights into one integer, or has scales beside them. Without a ``label`` the
    dtype with the most bytes names the whole.
    """
    bits = method[1] if method else None
    share = experts.active / experts.total if experts else 1.0
    mix: dict[str, list[int]] = {}
    total = routed = 0
    for tensor in tensors:
        weights = _weights(tensor, bits)
        total += weights
        if share < 1 and _ROUTED.search(tensor.name):
            routed += weights
        row = mix.setdefault(tensor.dtype, [0, 0, 0])
        row[0] += 1
        row[1] += weights
        row[2] += tensor.bytes
    ordered = sorted(mix.items(), key=lambda item: -item[1][2])
    size = sum(row[2] for row in mix.values())
    named = label or (f"{method[0]} {method[1]}-bit" if method else None)
    quantization = Quantization(
        label=named or (ordered[0][0] if ordered else "none"),
        method=method[0] if method else None,
        mix={dtype: DtypeShare(*row) for dtype, row in ordered},
        bits_per_weight=size * 8 / total if total else 0.0,
    )
    return Parameters(total, total - round(routed * (1 - share))), quantization


def _weights(tensor: TensorInfo, bits: int | None) -> int:
    """How many weights of the model the tensor holds."""
    elements = math.prod(tensor.shape)
    width = _INTEGERS.get(tensor.dtype)
    if bits is None:
        # Integers are buffers (position ids), but for plain int8 weights.
        return elements if width is None or tensor.name.endswith(".weight") else 0
    if _SCALES.search(tensor.name):
        return 0
    if width is None:
        return elements
    return elements * width // bits if _PACKED.search(tensor.name) else 0
