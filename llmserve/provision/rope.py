"""How a GGUF file scales its rotary embedding, in transformers' words.

transformers reads ``rope.freq_base`` and drops the rest, after which a model of the
Llama 3 family, say, is wrong from the first token on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any


class Impossible(Exception):
    """This file cannot be converted; the message is for the user."""


LLAMA3 = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
"""The same in every model that scales this way."""


def rope_parameters(
    architecture: str, metadata: Mapping[str, Any], freqs: Sequence[float]
) -> dict[str, Any]:
    """What belongs into ``rope_parameters`` of the configuration; empty when unscaled.

    ``freqs`` is the tensor ``rope_freqs.weight``, which divides each frequency. Raises
    ``Impossible`` for a scaling that cannot be expressed.
    """

    def key(name: str, default: Any = None) -> Any:
        return metadata.get(f"{architecture}.rope.{name}", default)

    base = float(key("freq_base", 10_000.0))
    if freqs and any(value != 1.0 for value in freqs):
        factor = round(max(freqs), 3)
        expected = llama3_divisors(base, len(freqs), factor)
        if not all(math.isclose(a, b, rel_tol=1e-3) for a, b in zip(freqs, expected, strict=True)):
            raise Impossible(
                "its rotary embedding is scaled by a table (rope_freqs.weight) that is not"
                " Llama 3's. Serve the model's own SafeTensors repository instead."
            )
        return {"rope_type": "llama3", "rope_theta": base, "factor": factor, **LLAMA3}
    kind = key("scaling.type", "none")
    factor = float(key("scaling.factor", 1.0))
    if kind == "none" or factor in (0.0, 1.0):
        return {}
    if kind == "linear":
        return {"rope_type": "linear", "rope_theta": base, "factor": factor}
    if kind == "yarn":
        trained = int(key("scaling.original_context_length", 0))
        if trained:
            return {
                "rope_type": "yarn",
                "rope_theta": base,
                "factor": factor,
                "original_max_position_embeddings": trained,
            }
    raise Impossible(
        f"its rotary embedding is scaled in a way ({kind}) that cannot be carried over. Serve the"
        " model's own SafeTensors repository instead."
    )


def llama3_divisors(base: float, count: int, factor: float) -> list[float]:
    """What Llama 3's rule divides each of ``count`` frequencies by."""
    trained = LLAMA3["original_max_position_embeddings"]
    low, high = LLAMA3["low_freq_factor"], LLAMA3["high_freq_factor"]
    divisors = []
    for index in range(count):
        wavelength = 2 * math.pi * base ** (index / count)
        if wavelength < trained / high:
            divisors.append(1.0)
        elif wavelength > trained / low:
            divisors.append(factor)
        else:
            smooth = (trained / wavelength - low) / (high - low)
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    return divisors
