"""Which prompts are short enough to be rendered on the event loop."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm")

from llmserve.engine.vllm.inline import are_short


def test_what_is_short() -> None:
    assert are_short(["hello", ""])
    assert not are_short(["x" * 1001])
    assert not are_short(["x"] * 33)
    assert not are_short([[{"type": "text", "text": "hello"}]])
