"""Parts of the benchmark that are done, in a file: a run that was stopped can go on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from bench.client import BenchError
from bench.parts import Setup
from bench.values import Found


@dataclass(slots=True)
class _File:
    """``asked``: what the run was told, of what, and where: the same when it goes on."""

    asked: dict[str, Any]
    parts: dict[str, Found] = field(default_factory=dict)


class Kept:
    """The file at ``path``; without one nothing is kept. ``about``: what is measured, and on
    what. Raises ``BenchError`` when what is there belongs to another run."""

    def __init__(self, path: Path | None, setup: Setup, about: Mapping[str, Any]) -> None:
        self._path = path
        told = {name: it for name, it in asdict(setup).items() if name not in ("folder", "say")}
        asked = {name: str(it) for name, it in {**told, **about}.items()}
        self._file = _File(asked)
        if path is not None and path.exists():
            try:
                self._file = msgspec.json.decode(path.read_bytes(), type=_File)
            except msgspec.DecodeError as error:
                raise BenchError(f"{path} has no parts of a benchmark in it: {error}") from error
            other = {name for name in asked if self._file.asked.get(name) != asked[name]}
            if other:
                raise BenchError(
                    f"{path} belongs to a run of something else: its {', '.join(sorted(other))} "
                    "is not the same (see 'asked' in it)"
                )

    def get(self, part: str) -> Found | None:
        """What a part has found, if it is done."""
        return self._file.parts.get(part)

    def put(self, part: str, found: Found) -> None:
        """A part is done."""
        self._file.parts[part] = found
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            written = self._path.with_name(self._path.name + ".new")
            written.write_bytes(msgspec.json.encode(self._file))
            written.replace(self._path)
