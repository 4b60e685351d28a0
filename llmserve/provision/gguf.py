"""A ``.gguf`` file → a SafeTensors folder that vLLM loads.

vLLM reads GGUF only through a plugin for GPUs, so the file is converted once, by
transformers' rules, in a process of its own (``convert``): the server never imports torch
for it, and the memory is free again afterwards. The result is kept under the SHA-256 of
the file. A conversion that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from llmserve.errors import SetupError
from llmserve.provision.cache import Interrupted, identity, locked, resumable
from llmserve.provision.progress import Notify, silent

FORMAT = 1
"""Part of the folder's name: raise it when ``convert`` makes other folders than before."""

WITHOUT_WEIGHTS = "--without-weights"
NOTES = "llmserve-conversion.json"


def converted_folder(cache: Path, name: str, sha256: str) -> Path:
    """Where the conversion of a file with this content is kept."""
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:80] or "model"
    return cache / "models" / f"{readable}-{sha256[:16]}-{FORMAT}"


def convert_gguf(file: Path, cache: Path, notify: Notify = silent, *, weights: bool = True) -> Path:
    """The folder with the converted model; converts it if that was not done before.
    Without ``weights``, only tokenizer and configuration.

    Raises ``SetupError`` that names the reason: not a GGUF file, an architecture that
    cannot be converted, too little memory or disk, or a result that does not agree with
    what the file says about itself.
    """
    check_magic(file)
    target = converted_folder(cache, file.stem, identity(file, cache, notify))
    if not weights:
        target = target.with_name(f"{target.name}-tokenizer")
    if target.is_dir():
        return target
    with locked(cache, target.name, notify):
        if target.is_dir():
            return target
        with resumable(target) as folder:
            _convert(file, folder, notify, weights=weights)
    return target


def conversion_notes(folder: Path) -> tuple[str, ...]:
    """What the conversion could not carry over exactly."""
    try:
        content = json.loads((folder / NOTES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ()
    return tuple(str(note) for note in content.get("notes", ()))


def check_magic(file: Path) -> None:
    try:
        with file.open("rb") as handle:
            start = handle.read(8)
    except OSError as error:
        raise SetupError(f"{file} cannot be read: {error.strerror}.") from error
    if start[:4] != b"GGUF":
        raise SetupError(f"{file} is not a GGUF file: it does not begin with 'GGUF'.")
    version = int.from_bytes(start[4:], "little")
    if version not in (2, 3):
        raise SetupError(
            f"{file} has GGUF version {version}; 2 and 3 can be read (the file may be big-endian)."
        )


def _convert(file: Path, folder: Path, notify: Notify, *, weights: bool) -> None:
    # -P: modules that happen to lie in the current folder are not picked up.
    command = [sys.executable, "-P", "-m", "llmserve.provision.convert", str(file), str(folder)]
    command += [] if weights else [WITHOUT_WEIGHTS]
    with tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        try:
            failure = _listen(child, file.name, notify)
            child.wait()
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
            if child.stdout is not None:
                child.stdout.close()
        errors.seek(0)
        last_words = errors.read().decode(errors="replace")
    if failure is None and child.returncode == 0:
        return
    reason = failure or _why(child.returncode, last_words)
    kind = Interrupted if child.returncode < 0 else SetupError
    raise kind(f"{file} cannot be converted: {reason}")


def _listen(child: subprocess.Popen[str], name: str, notify: Notify) -> str | None:
    """Pass progress on; the reason when the child says why it cannot go on."""
    failure = None
    assert child.stdout is not None
    for line in child.stdout:
        try:
            message: dict[str, Any] = json.loads(line)
        except ValueError:
            continue  # some library printed something
        if "error" in message:
            failure = str(message["error"])
        else:
            notify(f"Converting {name}: {message['step']}", message.get("fraction"))
    return failure


def _why(code: int, last_words: str) -> str:
    if code == -9:
        return "the conversion was killed, most likely for lack of memory. It can go on."
    lines = [line.strip() for line in last_words.splitlines() if line.strip()]
    return f"the conversion ended with status {code}. {lines[-1][:500] if lines else ''}".strip()
