"""The front of the package: from a path to what it says."""

from __future__ import annotations

import hashlib
import os
import stat
from glob import escape
from itertools import islice
from pathlib import Path

from llmserve.modelfile.assemble import describe_gguf, describe_safetensors
from llmserve.modelfile.assemble_apr import describe_apr
from llmserve.modelfile.detect import detect_source, hint
from llmserve.modelfile.errors import Refused, UnknownFormat, Unreadable
from llmserve.modelfile.folder import SHARD, Weights, find_weights
from llmserve.modelfile.local import MAX_FILES, LocalStore
from llmserve.modelfile.source import Store
from llmserve.modelfile.types import Detected, Format, ModelFile


def detect(path: Path | str, *, root: Path | None = None) -> Detected:
    """The format of a file, or of the model in a folder, by content.

    ``root``: symlinks are followed only to places inside it (``None``: anywhere).
    Raises ``Refused`` or ``Unreadable``; an unknown or dangerous file is no error here.
    """
    store, name = _place(path, root)
    if name is None:
        try:
            name = find_weights(store).files[0]
        except (Refused, UnknownFormat) as error:
            known = Format.PICKLE if isinstance(error, Refused) else Format.UNKNOWN
            return Detected(known, error.message)
    return _detect(store, name)


def describe(path: Path | str, *, root: Path | None = None) -> ModelFile:
    """What the headers of a file (any part of a split model will do) or of a folder say.

    ``root``: symlinks are followed only to places inside it (``None``: anywhere).
    Raises ``ModelFileError``.
    """
    return describe_store(*_place(path, root))


def describe_store(store: Store, name: str | None = None) -> ModelFile:
    """What the headers of the model in ``store`` say, or of its one file ``name``.

    Raises ``ModelFileError``.
    """
    folder = name is None
    weights = find_weights(store) if name is None else Weights(Format.UNKNOWN, (name,))
    first = weights.files[0]
    found = _detect(store, first)
    if found.format is Format.GGUF:
        return describe_gguf(store, first)
    if found.format is Format.SAFETENSORS:
        return describe_safetensors(store, weights, folder=folder)
    if found.format is Format.APR:
        return describe_apr(store, first)
    if found.format is Format.PICKLE:
        raise Refused(first, found.detail)
    source = store.open(first)
    try:
        head = source.read(0, 64)
    finally:
        source.close()
    raise UnknownFormat(first, head, hint(head))


def identity(path: Path | str) -> str:
    """A short text that changes when a file of the model was replaced or written to:
    from names, sizes, times of change and inodes, without reading. For ETags and caches.

    Raises ``Unreadable``.
    """
    place = Path(path)
    digest = hashlib.sha256(os.fsencode(place.name))
    try:
        for each in _files(place):
            status = each.stat()
            if stat.S_ISREG(status.st_mode):
                facts = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
                digest.update(os.fsencode(f"{each.name}\0{facts}\0{status.st_ctime_ns}\0"))
    except OSError as error:
        raise Unreadable(
            f"{place.name} cannot be read: {error.strerror}.", file=place.name
        ) from error
    return digest.hexdigest()[:32]


def _files(place: Path) -> list[Path]:
    """A folder's files, or a file with the other parts of its model."""
    if place.is_dir():
        return sorted(islice(place.iterdir(), MAX_FILES))
    found = SHARD.fullmatch(place.name)
    if found is None:
        return [place]
    return sorted(place.parent.glob(f"{escape(found[1])}-*-of-{found[3]}.{found[4]}")) or [place]


def _place(path: Path | str, root: Path | None) -> tuple[LocalStore, str | None]:
    """The folder to read in, and the file when it is one."""
    place = Path(path)
    try:
        folder = place.is_dir()
    except OSError as error:
        name = place.name[:100]
        raise Unreadable(f"{name} cannot be read: {error.strerror}.", file=name) from error
    if folder:
        if root is not None and not place.resolve().is_relative_to(root.resolve()):
            raise Refused(place.name, "it lies outside the folder that may be read")
        return LocalStore(place, root), None
    return LocalStore(place.parent, root, name=place.stem), place.name


def _detect(store: Store, name: str) -> Detected:
    source = store.open(name)
    try:
        return detect_source(source)
    finally:
        source.close()
