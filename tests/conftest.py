"""What all tests share: the demo model, and a tiny one made from it."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from tests.models import tiny_model

ENGINES = ("tests/contract/", "tests/e2e/")


def pytest_configure() -> None:
    """A job that a script starts in the background ignores SIGINT, and so do its
    children; tests that send one would wait for ever."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Tests with real engines stay in one process, in their order: an engine is shared, and
    the last of them measure. All others may run beside them. (xdist's own groups do nothing
    under pytest 9.)"""
    from xdist.scheduler import LoadScopeScheduling

    class EnginesTogether(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "engines" if nodeid.startswith(ENGINES) else nodeid

    return EnginesTogether(config, log)


@pytest.fixture(scope="session")
def demo_folder() -> Path:
    """The converted demo model; downloaded and converted once for each machine."""
    from llmserve.provision.resolve import resolve_model

    return Path(resolve_model("demo").path)


@pytest.fixture(scope="session")
def tiny_folder(demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random one-layer Llama: fast, and says nothing sensible."""
    return tiny_model(demo_folder, tmp_path_factory.mktemp("tiny") / "tiny")
