"""Parts of the benchmark that are done, in a file: a run that was stopped can go on."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from bench.client import BenchError
from bench.parts import Setup
from bench.values import Found


@dataclass(slots=True)
class _File:
    """``asked``: what the run was told, which has to be the same when it goes on."""

    asked: dict[str, Any]
    parts: dict[str, Found] = field(default_factory=dict)


class Kept:
    """The file at ``path``; without one nothing is kept. Raises ``BenchError`` when what is
    there belongs to another run."""

    def __init__(self, path: Path | None, setup: Setup) -> None:
        self._path = path
        asked = {
            name: str(value)
            for name, value in asdict(setup).items()
            if name not in ("folder", "say")
        }
        self._file = _File(asked)
        if path is not None and path.exists():
            try:
                self._file = msgspec.json.decode(path.read_bytes(), type=_File)
            except msgspec.DecodeError as error:
                raise BenchError(f"{path} has no parts of a benchmark in it: {error}") from error
            if self._file.asked != asked:
                raise BenchError(f"{path} belongs to a run that was asked for something else")

    def get(self, part: str) -> Found | None:
        """What a part has found, if it is done."""
        return self._file.parts.get(part)

    def put(self, part: str, found: Found) -> None:
        """A part is done."""
        self._file.parts[part] = found
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_bytes(msgspec.json.encode(self._file))
