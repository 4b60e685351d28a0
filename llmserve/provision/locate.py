"""Where a model lies, without obtaining it."""

from __future__ import annotations

from pathlib import Path

from llmserve.provision.cache import cache_dir
from llmserve.provision.hubcache import repository_folder, snapshot
from llmserve.provision.resolve import DEMO, REPOSITORY


def locate_model(
    source: str, revision: str | None, hub_cache: Path, cache: Path | None = None
) -> Path | None:
    """The file or folder of the model ``source`` (as ``resolve_model`` takes it) if it is
    on this machine: what the user named, or what was downloaded or converted for it."""
    if source == DEMO:
        from llmserve.provision.demo import GGUF_SHA256, MEMBER
        from llmserve.provision.gguf import converted_folder

        found = converted_folder(cache_dir(cache), Path(MEMBER).stem, GGUF_SHA256)
        return found if found.is_dir() else None
    path = Path(source).expanduser()
    if path.exists():
        return path.absolute()
    if REPOSITORY.fullmatch(source):
        return snapshot(repository_folder(hub_cache, source), revision)
    return None


def root_of(path: Path) -> Path:
    """What the files of a model may be links into: its own folder, or the whole repository
    where it lies in the Hugging Face cache (whose snapshots link to blobs beside them)."""
    folder = path if path.is_dir() else path.parent
    if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
        return folder.parent.parent
    return folder
