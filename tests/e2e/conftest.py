"""Servers that the end-to-end tests share: an engine start costs 15 seconds and 2 GB."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.harness import Server, serving

DEMO = "SmolLM2-135M-Instruct"


@pytest.fixture(scope="session")
def demo_server(demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """``llmserve serve demo``: the real model, for tests in which the text matters."""
    with serving(["demo"], tmp_path_factory.mktemp("demo") / "log") as server:
        yield server
