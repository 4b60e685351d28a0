"""What the tests of the deployment files share: the files, parsed."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Stage:
    """One ``FROM … AS name`` of a Dockerfile, with the instructions below it."""

    name: str
    base: str
    instructions: tuple[tuple[str, str], ...]

    def all(self, instruction: str) -> list[str]:
        return [value for name, value in self.instructions if name == instruction]


class Dockerfile:
    """The stages of a Dockerfile, and what an image inherits through them."""

    def __init__(self, text: str) -> None:
        joined = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE)
        lines = re.sub(r"\\\n", " ", joined).splitlines()
        self.args: dict[str, str] = {}
        self.stages: dict[str, Stage] = {}
        for line in filter(str.strip, lines):
            instruction, value = line.strip().split(maxsplit=1)
            if instruction == "FROM":
                base, _, name = value.partition(" AS ")
                self.stages[name] = Stage(name, base, ())
            elif not self.stages:
                assert instruction == "ARG"
                self.args.update([value.split("=", 1)])
            else:
                last = list(self.stages)[-1]
                old = self.stages[last]
                self.stages[last] = Stage(
                    old.name, old.base, (*old.instructions, (instruction, value.strip()))
                )

    def lineage(self, name: str) -> list[Stage]:
        """The stage and its ancestors, the oldest first."""
        stage = self.stages[name]
        older = self.lineage(stage.base) if stage.base in self.stages else []
        return [*older, stage]

    def all(self, instruction: str, stage: str = "server") -> list[str]:
        return [value for one in self.lineage(stage) for value in one.all(instruction)]

    def env(self, stage: str = "server") -> dict[str, str]:
        pairs = [pair for value in self.all("ENV", stage) for pair in shlex.split(value)]
        return dict(pair.split("=", 1) for pair in pairs)


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def dockerfile() -> Dockerfile:
    return Dockerfile((ROOT / "Dockerfile.cuda").read_text())


@pytest.fixture(scope="session")
def compose() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())


@pytest.fixture(scope="session")
def unit() -> dict[str, dict[str, list[str]]]:
    """The systemd unit: section → key → values, repeated keys kept."""
    sections: dict[str, dict[str, list[str]]] = {}
    for line in (ROOT / "deploy/llmserve.service").read_text().splitlines():
        if line.startswith("["):
            section = sections.setdefault(line.strip("[]"), {})
        elif line and not line.startswith("#"):
            key, value = line.split("=", 1)
            section.setdefault(key, []).append(value)
    return sections


@pytest.fixture(scope="session")
def routes() -> frozenset[str]:
    """The routes that deployments rely on."""
    return frozenset({"/livez", "/health", "/readyz", "/ready", "/healthz", "/metrics"})


@pytest.fixture(scope="session")
def serve_flags() -> frozenset[str]:
    """Every flag in ``llmserve serve --help``."""
    done = subprocess.run(
        [sys.executable, "-m", "llmserve", "serve", "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        # Wide and plain, so that no long flag is cut or coloured.
        env=os.environ | {"COLUMNS": "240", "TERM": "dumb", "NO_COLOR": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return frozenset(re.findall(r"--[a-z][a-z-]*", done.stdout))


@pytest.fixture(scope="session")
def expand() -> Callable[..., str]:
    """Compose's ``${NAME:-default}`` and ``${NAME:?message}``, with the values given."""

    def replace(text: str, **values: str) -> str:
        def one(match: re.Match[str]) -> str:
            name, default = match["name"], match["default"]
            value = values.get(name) or default
            assert value is not None, f"{name} has neither a value nor a default"
            return value

        pattern = r"\$\{(?P<name>\w+)(?::-(?P<default>[^}]*)|:\?[^}]*)?\}"
        return re.sub(pattern, one, text)

    return replace
