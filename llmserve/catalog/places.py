"""Which models there are, by name. What is not listed here cannot be asked for: no path
is ever made from what a client sends."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmserve.modelfile import ModelFileError, detect
from llmserve.provision.hubcache import cached_repositories, snapshot
from llmserve.provision.locate import locate_model, root_of

MAIN = ""
"""The name under which the served model is found, whatever clients call it."""

MAX_PLACES = 1000
MAX_ENTRIES = 20_000
"""Names that are looked at in configured folders, all together."""

_DEPTH = 3
_FILES = (".gguf", ".apr", ".safetensors")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_PART = re.compile(r"-(\d{5})-of-\d{5}\.\w+$")
_MARKS = ("config.json", "adapter_config.json", "model.safetensors.index.json")


@dataclass(frozen=True, slots=True)
class Place:
    """One model. Nothing outside ``root`` is read for it. ``origin``: ``served``,
    ``folder``, ``hub`` or ``adapter``. ``format`` by content; ``bytes`` of the file, or of
    all files in the folder; ``modified`` in Unix seconds. ``problem`` says why the format
    cannot be told."""

    name: str
    path: str
    root: str
    origin: str
    format: str = "unknown"
    bytes: int = 0
    modified: int = 0
    problem: str | None = None


def find_places(
    *,
    source: str | None,
    revision: str | None,
    folders: Sequence[str],
    hub_cache: str,
    list_hub: bool,
    adapters: Mapping[str, str],
) -> list[Place]:
    """The served model (``source``, if it is on this machine) first, then the others,
    ``MAX_PLACES`` at most. Of two with one name the first counts."""
    candidates = _candidates(source, revision, folders, Path(hub_cache), list_hub, adapters)
    found: dict[str, Place] = {}
    for name, path, root, origin in candidates:
        if name not in found:
            found[name] = _look(name, path, root, origin)
        if len(found) >= MAX_PLACES:
            break
    return list(found.values())


_Candidate = tuple[str, Path, Path, str]


def _candidates(
    source: str | None,
    revision: str | None,
    folders: Sequence[str],
    hub_cache: Path,
    list_hub: bool,
    adapters: Mapping[str, str],
) -> Iterator[_Candidate]:
    main = locate_model(source, revision, hub_cache) if source else None
    if main is not None:
        yield MAIN, main, root_of(main), "served"
    for name, path in adapters.items():
        adapter = Path(path).expanduser().absolute()
        yield name, adapter, root_of(adapter), "adapter"
    budget = [MAX_ENTRIES]
    for folder in folders:
        root = Path(folder).expanduser().absolute()
        for name, found in _walk(root, "", _DEPTH, budget):
            yield name, found, root, "folder"
    if list_hub:
        for name, repository in cached_repositories(hub_cache, MAX_PLACES):
            commit = snapshot(repository)
            if commit is not None:
                yield name, commit, repository, "hub"


def _walk(folder: Path, prefix: str, depth: int, budget: list[int]) -> Iterator[tuple[str, Path]]:
    """Model files and folders, by names relative to the root. Links to folders are listed
    when they hold a model, but not walked through."""
    try:
        with os.scandir(folder) as listing:
            entries = _some(listing, budget)
    except OSError:
        return
    names = {entry.name for entry in entries}
    if prefix and _is_model_folder(names):
        yield prefix.rstrip("/"), folder
        return
    for entry in entries:
        name = prefix + entry.name
        if entry.is_dir(follow_symlinks=False):
            if depth > 1:
                yield from _walk(Path(entry.path), f"{name}/", depth - 1, budget)
        elif entry.is_dir() or _is_model_file(entry.name):
            yield name, Path(entry.path)


def _some(listing: Iterable[os.DirEntry[str]], budget: list[int]) -> list[os.DirEntry[str]]:
    found = []
    for entry in listing:
        budget[0] -= 1
        if budget[0] < 0:
            break
        if not entry.name.startswith(".") and _is_text(entry.name):
            found.append(entry)
    return sorted(found, key=lambda entry: entry.name)


def _is_model_folder(names: set[str]) -> bool:
    """A folder that is one model; one of GGUF files alone is a folder of models."""
    return not names.isdisjoint(_MARKS) or any(each.endswith(".safetensors") for each in names)


def _is_model_file(name: str) -> bool:
    """By its ending: one that lies is found out when it is opened. Of a split model, the
    first part stands for all."""
    part = _PART.search(name)
    return name.endswith((*_FILES, *_PICKLES)) and (part is None or int(part[1]) == 1)


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _look(name: str, path: Path, root: Path, origin: str) -> Place:
    try:
        found = detect(path, root=root)
        kind, problem = found.format.value, None if found.readable else found.detail
        size, modified = _size(path)
    except ModelFileError as error:
        kind, problem, size, modified = "unknown", error.message, 0, 0
    except OSError as error:
        kind, problem, size, modified = "unknown", error.strerror or "unreadable", 0, 0
    return Place(name, str(path), str(root), origin, kind, size, modified, problem)


def _size(path: Path) -> tuple[int, int]:
    """Bytes, and the time of the last change."""
    files = [path] if not path.is_dir() else [each for each in path.iterdir() if each.is_file()]
    status = [each.stat() for each in files[:MAX_ENTRIES]]
    newest = max((each.st_mtime for each in status), default=0.0)
    return sum(each.st_size for each in status), int(newest)
