"""The README is run: its commands work, and its outputs are what they print."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.harness import Server

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?!https?:)([^)#]+)")
_VOLATILE = [
    (re.compile(r"[0-9a-f]{32}"), "ID"),
    (re.compile(r'"start_seconds":\{[^}]*\}'), '"start_seconds":N'),
    (re.compile(r'"(\w+_s|seconds_in_stage|cached_tokens)":[-+.\de]+'), r'"\1":N'),
]


def examples() -> list[tuple[str, str, str]]:
    """Language, code and expected output of every example that shows its output."""
    blocks = _BLOCK.findall((ROOT / "README.md").read_text("utf-8"))
    return [
        (language, code, output)
        for (language, code), (kind, output) in itertools.pairwise(blocks)
        if language in ("sh", "python") and kind == "text"
    ]


def normal(text: str) -> str:
    """Without ids and times; tokens that came in one event count as if they had not."""
    if "event: token" in text:
        texts = re.findall(r'"text":"((?:[^"\\]|\\.)*)"', text)
        text = "".join(texts) + text[text.index("event: done") :]
    for pattern, replacement in _VOLATILE:
        text = pattern.sub(replacement, text)
    return text.strip()


def test_there_are_examples() -> None:
    assert len(examples()) >= 4


@pytest.mark.parametrize(("language", "code", "output"), examples())
def test_readme(demo_server: Server, language: str, code: str, output: str) -> None:
    code = code.replace("http://127.0.0.1:8000", demo_server.url)
    command = ["bash", "-c", code] if language == "sh" else [sys.executable, "-c", code]
    # A reader has the commands of .venv/bin at hand.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | {"PATH": path},
    )
    assert done.returncode == 0, done.stderr
    assert normal(done.stdout) == normal(output)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in _LINK.findall(page.read_text("utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"
