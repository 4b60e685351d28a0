"""Where bytes come from: the two seams between the readers and the world.

A reader asks for the beginning of a file, or for a bounded range, and never for more
than ``HEADER_BUDGET`` bytes. Local files come from ``local.py``; remote ones can be
served by anything that has these methods.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from typing import Protocol

HEADER_BUDGET = 64 << 20
"""No header may be longer: several times the longest that is in use."""

Buffer = bytes | mmap.mmap
"""What headers are parsed from. Slices of both are ``bytes``."""


class Source(Protocol):
    """One open file."""

    @property
    def name(self) -> str:
        """The name to show: relative to the model, never a path of the machine."""
        ...

    @property
    def size(self) -> int: ...

    @property
    def mapped(self) -> bool: ...

    @property
    def sampled(self) -> bool:
        """Whether blocks of the data may be read for the fingerprint: over a network each
        costs a request."""
        ...

    def head(self, size: int) -> Buffer:
        """The first ``size`` bytes of the file or more, but never more than the file has
        nor than ``HEADER_BUDGET``. Calls with growing sizes give growing buffers."""
        ...

    def read(self, offset: int, size: int) -> bytes:
        """Exactly this range, cut off at the end of the file. Raises ``Unreadable``."""
        ...

    def close(self) -> None: ...


class Store(Protocol):
    """The files of one model: a folder, or a single file with its neighbours."""

    @property
    def name(self) -> str:
        """The model's name as far as its place tells it (folder or file name)."""
        ...

    def sizes(self) -> Mapping[str, int]:
        """Regular files by name relative to the model, with their sizes; the model's own
        folder only, without subfolders."""
        ...

    def open(self, name: str) -> Source:
        """Raises ``Unreadable`` or ``Refused``."""
        ...
