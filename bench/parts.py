"""What a part of the benchmark is: one kind of measurement."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from bench.values import Found

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Setup:
    """What every part is told. ``with_vllm`` is false where the scripted engine is to do:
    llmserve is then measured alone."""

    rounds: int
    quick: bool
    with_vllm: bool
    only: Sequence[str]
    arguments: Mapping[str, Any]
    folder: Path
    say: Say

    def wants(self, key: str) -> bool:
        """Whether what has this name was asked for."""
        return not self.only or any(word in key for word in self.only)


class Part(Protocol):
    """One kind of measurement. It starts the servers it needs, and stops them."""

    @property
    def name(self) -> str:
        """For messages."""

    def keys(self, setup: Setup) -> list[str]:
        """What it would measure here, by names that ``--only`` chooses from."""

    async def measure(self, setup: Setup) -> Found:
        """Measure what was asked for. Raises ``BenchError``."""
