"""The Hugging Face cache on disk, without importing huggingface_hub.

<cache>/models--<owner>--<name>/refs/<revision>     holds a commit
<cache>/models--<owner>--<name>/snapshots/<commit>/ links into ../../blobs
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

_PREFIX = "models--"


def hub_cache_dir(environ: Mapping[str, str]) -> Path:
    """``HF_HUB_CACHE``, else ``hub`` in ``HF_HOME``, else in ``~/.cache/huggingface``."""
    if own := environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(own).expanduser()
    base = environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(environ.get("HF_HOME") or f"{base}/huggingface").expanduser() / "hub"


def cached_repositories(cache: Path, most: int) -> Iterator[tuple[str, Path]]:
    """Names and folders of the repositories in a cache, ``most`` of them at most."""
    try:
        folders = sorted(cache.glob(f"{_PREFIX}*"))[:most]
    except OSError:
        return
    for folder in folders:
        yield folder.name.removeprefix(_PREFIX).replace("--", "/"), folder


def repository_folder(cache: Path, name: str) -> Path:
    """Where a repository would be."""
    return cache / (_PREFIX + name.replace("/", "--"))


def snapshot(repository: Path, revision: str | None = None) -> Path | None:
    """The folder of a revision: a branch or tag, or a commit (``None``: ``main``, else the
    newest)."""
    snapshots = repository / "snapshots"
    for name in (revision,) if revision else ("main",):
        try:
            commit = (repository / "refs" / name).read_text(encoding="utf-8").strip()[:64]
        except (OSError, UnicodeDecodeError):
            commit = name
        if commit and "/" not in commit and ".." not in commit and (snapshots / commit).is_dir():
            return snapshots / commit
    if revision:
        return None
    try:
        found = [each for each in snapshots.iterdir() if each.is_dir()]
        return max(found, key=lambda each: each.stat().st_mtime, default=None)
    except OSError:
        return None


def default_hub_cache() -> Path:
    """That of this process's own environment."""
    return hub_cache_dir(os.environ)
