"""How many tokens the server's tokenizer makes of a text, found out by asking it.

Without a tokenizer of its own the load generator works with any server. It sends two texts
of different length, reads the prompt tokens of both from ``usage``, and draws a line.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scale:
    """``tokens = overhead + per_unit × units``. Units are words or characters; the overhead
    is what the chat template and the special tokens add to every prompt."""

    per_unit: float = 1.0
    overhead: float = 0.0

    def units(self, tokens: float, *, least: int = 1) -> int:
        """How many units make a whole prompt of so many tokens."""
        return max(round((tokens - self.overhead) / self.per_unit), least)

    def tokens(self, units: float) -> float:
        """How many tokens so many units make, overhead left out."""
        return units * self.per_unit


def fit(first: tuple[int, int], second: tuple[int, int]) -> Scale:
    """The line through two measured points ``(units, tokens)``. Raises ``ValueError`` when
    the longer text has no more tokens than the shorter."""
    (units, tokens), (more_units, more_tokens) = first, second
    slope = (more_tokens - tokens) / (more_units - units)
    if slope <= 0:
        raise ValueError(f"{more_units} units make {more_tokens} tokens, {units} make {tokens}")
    return Scale(slope, max(tokens - slope * units, 0.0))
