"""What vLLM finds in its environment."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llmserve.engine.vllm.environment import prepare_environment
from llmserve.settings import Settings

NAME = "VLLM_RPC_BASE_PATH"


@pytest.mark.parametrize(("characters", "fits"), [(40, True), (70, True), (71, False)])
@pytest.mark.parametrize("letter", ["x", "é"])
def test_sockets_lie_in_our_folder_where_their_paths_fit(
    monkeypatch: pytest.MonkeyPatch, letter: str, characters: int, fits: bool
) -> None:
    """The path of a socket has 107 bytes at most, and vLLM's names have 36."""
    monkeypatch.setattr(os, "environ", {})
    more, odd = divmod(characters - 1, len(letter.encode()))
    folder = Path("/" + letter * more + "x" * odd)
    prepare_environment(Settings(), "model", folder / "logging.json")
    assert os.environ.get(NAME) == (str(folder) if fits else None)
