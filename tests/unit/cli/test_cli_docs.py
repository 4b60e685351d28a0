"""The generated parts of the documents are up to date."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmserve.cli.reference import parts, rendered

DOCS = Path(__file__).parents[3] / "docs"


@pytest.mark.parametrize("name", parts())
def test_the_document_is_what_would_be_generated(name: str) -> None:
    text = (DOCS / name).read_text(encoding="utf-8")
    assert "<!-- generated -->" in text
    assert text == rendered(text, parts()[name]), "run: python -m llmserve.cli.reference docs"
