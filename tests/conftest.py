"""What all tests share: the demo model, and a tiny one made from it."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.models import tiny_model


def pytest_configure() -> None:
    """A job that a script starts in the background ignores SIGINT, and so do its
    children; tests that send one would wait for ever."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def demo_folder() -> Path:
    """The converted demo model; downloaded and converted once for each machine."""
    from llmserve.provision.resolve import resolve_model

    return Path(resolve_model("demo").path)


@pytest.fixture(scope="session")
def tiny_folder(demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random one-layer Llama: fast, and says nothing sensible."""
    return tiny_model(demo_folder, tmp_path_factory.mktemp("tiny") / "tiny")
