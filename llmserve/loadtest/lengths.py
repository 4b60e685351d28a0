"""Distributions of prompt and answer lengths, in tokens."""

from __future__ import annotations

import math
import random
import re
from dataclasses import dataclass
from typing import Literal

from llmserve.errors import ConfigError

MOST_TOKENS = 1_000_000
ALLOWED = "N, LOW-HIGH, normal:MEAN,SD, or lognormal:MEAN,SD"

_NUMBER = r"(\d+(?:\.\d+)?)"
_FORMS: tuple[tuple[Literal["fixed", "uniform", "normal", "lognormal"], str], ...] = (
    ("fixed", r"(\d+)()"),
    ("uniform", r"(\d+)-(\d+)"),
    ("normal", rf"normal:{_NUMBER},{_NUMBER}"),
    ("lognormal", rf"lognormal:{_NUMBER},{_NUMBER}"),
)


@dataclass(frozen=True, slots=True)
class Lengths:
    """One distribution. ``first`` and ``second`` are the value and nothing, both bounds
    (included), or mean and standard deviation of the lengths themselves. Nothing longer
    than ``most`` is drawn, and nothing shorter than 1."""

    kind: Literal["fixed", "uniform", "normal", "lognormal"]
    first: float
    second: float = 0.0
    most: int = MOST_TOKENS

    @property
    def mean(self) -> float:
        """The mean, before anything is cut off at the ends."""
        return (self.first + self.second) / 2 if self.kind == "uniform" else self.first

    def __str__(self) -> str:
        match self.kind:
            case "fixed":
                return f"{self.first:g}"
            case "uniform":
                return f"{self.first:g} to {self.second:g}"
        return f"{self.kind} with mean {self.first:g} and deviation {self.second:g}"

    def draw(self, rng: random.Random) -> int:
        """One length."""
        return min(max(round(self._draw(rng)), 1), self.most)

    def _draw(self, rng: random.Random) -> float:
        match self.kind:
            case "fixed":
                return self.first
            case "uniform":
                return rng.randint(int(self.first), int(self.second))
            case "normal":
                return rng.gauss(self.first, self.second)
            case "lognormal":
                # Mean and deviation of the lengths, not of their logarithms.
                variance = math.log1p((self.second / self.first) ** 2)
                return rng.lognormvariate(math.log(self.first) - variance / 2, math.sqrt(variance))


def parse_lengths(text: str, option: str) -> Lengths:
    """Read what a user wrote. Raises ``ConfigError``, which names the option."""
    for kind, form in _FORMS:
        if found := re.fullmatch(form, text):
            first, second = float(found[1]), float(found[2] or 0)
            if 1 <= first <= MOST_TOKENS and (kind != "uniform" or first <= second):
                return Lengths(kind, first, second)
    raise ConfigError(f"{option}: {text!r} is not allowed; allowed: {ALLOWED}, at least 1 token.")


# Means of the 1,000 requests that `vllm bench serve` draws from a ShareGPT file by default
# (229,711 tokens in, 203,068 out: github.com/vllm-project/vllm/pull/18566). The shape is
# ours: a long tail, cut where that tool cuts.
SHAREGPT_PROMPTS = Lengths("lognormal", 230, 270, most=1024)
SHAREGPT_ANSWERS = Lengths("lognormal", 203, 230, most=1024)
