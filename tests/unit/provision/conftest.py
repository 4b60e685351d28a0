"""A tiny GGUF file, and its conversion by the real process."""

from __future__ import annotations

from pathlib import Path

import pytest
from gguf_files import HEADS, HIDDEN, write_gguf

from llmserve.provision.rope import llama3_divisors


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    freqs = llama3_divisors(500_000.0, HIDDEN // HEADS // 2, 8.0)
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", freqs=freqs)


@pytest.fixture(scope="session")
def converted(tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny file, converted by the real process."""
    from llmserve.provision.gguf import convert_gguf

    return convert_gguf(tiny_gguf, tmp_path_factory.mktemp("cache"))
