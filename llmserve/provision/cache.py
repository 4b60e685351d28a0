"""Where downloads and conversions are kept, and how they get there safely.

    <cache>/downloads/          files from package indexes
    <cache>/models/<name>-<hash>/   converted models
    <cache>/identity/           SHA-256 of files seen before
    <cache>/locks/

Whatever has its final name is complete: work happens under another name and is moved when
it is done. A lock makes processes that want the same thing wait for the first of them.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from llmserve.errors import SetupError
from llmserve.provision.progress import Notify, silent


def default_cache_dir(environ: Mapping[str, str]) -> Path:
    """``LLMSERVE_CACHE``, else ``llmserve`` in the user's cache folder (XDG rules)."""
    if own := environ.get("LLMSERVE_CACHE"):
        return Path(own).expanduser().absolute()
    base = environ.get("XDG_CACHE_HOME", "")
    # The XDG specification wants relative paths ignored.
    if base and Path(base).is_absolute():
        return Path(base) / "llmserve"
    home = environ.get("HOME")
    return (Path(home) if home else Path.home()) / ".cache" / "llmserve"


def cache_dir(given: Path | None = None) -> Path:
    """The cache that was given, or this process's own."""
    return given if given is not None else default_cache_dir(os.environ)


def make_folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SetupError(
            f"The cache folder {folder} cannot be made: {error.strerror}. Set LLMSERVE_CACHE to"
            " a folder that can be written."
        ) from error
    return folder


@contextmanager
def locked(cache: Path, name: str, notify: Notify = silent) -> Iterator[None]:
    """Hold the lock ``name`` of this cache; wait for another process that holds it."""
    path = make_folder(cache / "locks") / f"{name}.lock"
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise SetupError(
            f"The cache {cache} cannot be written: {error.strerror}. Set LLMSERVE_CACHE to a"
            " folder that can."
        ) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            notify(f"Waiting for another process that prepares {name}", None)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        # Closing releases the lock; the kernel does it as well when the process dies.
        os.close(handle)


class Interrupted(SetupError):
    """Work broke off that can go on where it stopped."""


@contextmanager
def resumable(target: Path) -> Iterator[Path]:
    """A folder that becomes ``target`` when the block ends well, and vanishes when it ends
    with a ``SetupError`` other than ``Interrupted``. What a killed or interrupted attempt has
    left is in it, for the block to go on with. Call it under the lock of ``target``."""
    folder = make_folder(target.with_name(f".{target.name}.partial"))
    try:
        yield folder
    except Interrupted:
        raise
    except SetupError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    if target.exists():
        shutil.rmtree(target)
    folder.chmod(0o777 & ~current_umask())
    folder.rename(target)


def current_umask() -> int:
    """The umask; the system only tells it by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def require_space(folder: Path, needed: int, what: str) -> None:
    """Fail before the work, not in the middle of it. ``needed`` is in bytes."""
    existing = folder
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise SetupError(
            f"{what} needs {in_words(needed)} on disk; {existing} has {in_words(free)} free."
            " Free some space, or set LLMSERVE_CACHE to a folder on a larger disk."
        )


def in_words(size: int) -> str:
    """A number of bytes for people: ``1.5 GB``, ``98 MB``."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def sha256_of(path: Path, notify: Notify = silent) -> str:
    digest = hashlib.sha256()
    size, done = max(1, path.stat().st_size), 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
            done += len(block)
            notify(f"Reading {path.name}", done / size)
    return digest.hexdigest()


def identity(path: Path, cache: Path, notify: Notify = silent) -> str:
    """SHA-256 of a file; remembered, so that a large file is read only once."""
    path = path.resolve()
    about = path.stat()
    facts = [str(path), about.st_size, about.st_mtime_ns, about.st_ino]
    name = hashlib.sha256(str(path).encode()).hexdigest()[:32]
    note = make_folder(cache / "identity") / f"{name}.json"
    try:
        known = json.loads(note.read_text(encoding="utf-8"))
        if known["facts"] == facts:
            return str(known["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not seen before, or the note is damaged: read the file
    digest = sha256_of(path, notify)
    write_atomically(note, json.dumps({"facts": facts, "sha256": digest}))
    return digest


def write_atomically(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
