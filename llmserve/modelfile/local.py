"""Files on this machine, opened as if somebody wanted to trick us."""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from llmserve.modelfile.errors import Refused, Unreadable
from llmserve.modelfile.source import HEADER_BUDGET, Buffer

MAPPED_FROM = 50_000_000
"""Larger files are mapped; smaller ones are read."""

MAX_FILES = 20_000
"""No folder of a model holds more."""

_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class LocalSource:
    """A regular file. Only its beginning is mapped, so nothing behind the longest legal
    header is even addressable."""

    def __init__(self, name: str, descriptor: int, size: int) -> None:
        self.name = name
        self.size = size
        self.mapped = size > MAPPED_FROM
        self.sampled = True
        self._descriptor = descriptor
        self._head: Buffer = b""

    def head(self, size: int) -> Buffer:
        end = min(size, self.size, HEADER_BUDGET)
        if len(self._head) >= end:
            return self._head
        try:
            if self.mapped:
                length = min(self.size, HEADER_BUDGET)
                self._head = mmap.mmap(self._descriptor, length, access=mmap.ACCESS_READ)
            else:
                self._head = self.read(0, end)
        except (OSError, ValueError) as error:
            raise _unreadable(self.name, error) from error
        return self._head

    def read(self, offset: int, size: int) -> bytes:
        parts = []
        try:
            while size > 0 and (part := os.pread(self._descriptor, size, offset)):
                parts.append(part)
                offset += len(part)
                size -= len(part)
        except OSError as error:
            raise _unreadable(self.name, error) from error
        return b"".join(parts)

    def close(self) -> None:
        if isinstance(self._head, mmap.mmap):
            self._head.close()
        self._head = b""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class LocalStore:
    """The regular files of one folder, as it is when it is first listed. ``root``: what
    they may resolve into."""

    def __init__(self, folder: Path, root: Path | None = None, name: str | None = None) -> None:
        self.folder = folder
        self.name = name or _folder_name(folder)
        self._sizes: dict[str, int] | None = None
        self._root = None if root is None else Path(os.path.realpath(root))

    def sizes(self) -> Mapping[str, int]:
        if self._sizes is None:
            self._sizes = self._list()
        return self._sizes

    def _list(self) -> dict[str, int]:
        found = {}
        try:
            with os.scandir(self.folder) as entries:
                for number, entry in enumerate(entries):
                    if number >= MAX_FILES:
                        raise Refused(self.name, f"it holds more than {MAX_FILES:,} files")
                    if _is_text(entry.name) and (status := _status(entry)):
                        found[entry.name] = status.st_size
        except OSError as error:
            raise _unreadable(self.name, error) from error
        return found

    def open(self, name: str) -> LocalSource:
        if not _is_text(name) or name in ("", ".", "..") or Path(name).name != name:
            raise Refused(ascii(name), "it is not the name of a file in the model's folder")
        path = self.folder / name
        descriptor = open_regular(path, name, self._root)
        return LocalSource(name, descriptor, os.fstat(descriptor).st_size)


def open_regular(path: Path, name: str, root: Path | None) -> int:
    """A descriptor of a regular file inside ``root``.

    The file is looked at before it is opened (opening a device can have effects) and
    again afterwards (it can have been exchanged); a pipe never blocks.
    """
    try:
        target = os.path.realpath(path, strict=True)
        _require_regular(Path(target).stat(), name)
        _require_inside(target, root, name)
        descriptor = os.open(target, _FLAGS | os.O_NOFOLLOW)
    except (OSError, ValueError) as error:
        raise _unreadable(name, error) from error
    try:
        _require_regular(os.fstat(descriptor), name)
        _require_inside(_opened(descriptor, target), root, name)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _opened(descriptor: int, fallback: str) -> str:
    """What was opened in truth: a folder on the way can have been exchanged meanwhile."""
    try:
        return str(Path(f"/proc/self/fd/{descriptor}").readlink())
    except OSError:
        return fallback


def _require_regular(status: os.stat_result, name: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "no regular file")
        raise Refused(name, f"it is {kind}, not a regular file")


def _require_inside(target: str, root: Path | None, name: str) -> None:
    if root is not None and not Path(target).is_relative_to(root):
        raise Refused(name, "it lies outside the folder that may be read")


def _status(entry: os.DirEntry[str]) -> os.stat_result | None:
    """Of regular files, and of links to such."""
    try:
        status = entry.stat()
    except OSError:
        return None
    return status if stat.S_ISREG(status.st_mode) else None


def _is_text(name: str) -> bool:
    """File names of other encodings cannot be shown, nor can a name hold a NUL."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in name


def _folder_name(folder: Path) -> str:
    """``models--org--name/snapshots/<revision>`` of the Hugging Face cache is org/name."""
    parts = folder.absolute().parts
    if len(parts) > 2 and parts[-2] == "snapshots" and parts[-3].startswith("models--"):
        return "/".join(parts[-3].split("--")[1:])
    return folder.name or folder.absolute().name or "model"


def _unreadable(name: str, error: Exception) -> Unreadable:
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return Unreadable(f"{name} cannot be read: {reason}.", file=name)
