"""Set-up and packaging, as a newcomer meets them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = {
    str(path.relative_to(ROOT))
    for path in (ROOT / "llmserve").rglob("*")
    if path.is_file() and "__pycache__" not in path.parts
}


def test_wheel_holds_everything(tmp_path: Path) -> None:
    command = ["-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        entry = next(name for name in names if name.endswith("entry_points.txt"))
        assert "llmserve = llmserve.cli.main:main" in archive.read(entry).decode()
    assert names.issuperset(PACKAGE)
    assert {name.partition("/")[0] for name in names if ".dist-info" not in name} == {"llmserve"}


def make(*arguments: str, cwd: Path = ROOT, **environ: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "HOME": str(cwd), **environ}
    return subprocess.run(
        ["make", "--no-print-directory", *arguments],  # noqa: S607
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_arguments_reach_the_server() -> None:
    shown = make("-n", "serve", "ARGS=--port 9000", "MODEL=/models/mine").stdout
    assert "llmserve serve /models/mine --port 9000" in shown
    assert "llmserve serve demo" in make("-n", "serve").stdout


def test_missing_python_is_explained() -> None:
    answer = make("setup", "PYTHON=python3-not-here")
    assert answer.returncode != 0
    assert "there is no python3-not-here here" in answer.stderr


def test_second_run_installs_nothing() -> None:
    stamp = ROOT / ".venv" / "llmserve-setup.json"
    if not stamp.exists():
        pytest.skip("this environment was not made by `make`")
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import setup_env
    finally:
        sys.path.remove(str(ROOT / "tools"))
    engine = json.loads(stamp.read_text())["engine"]
    if not setup_env.is_current(engine, True):
        pytest.skip("this environment is not up to date")
    before, started = stamp.stat().st_mtime_ns, time.perf_counter()
    command = [sys.executable, str(ROOT / "tools" / "setup_env.py"), "--dev", "--engine", engine]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    assert time.perf_counter() - started < 2
    assert (answer.stdout, answer.stderr) == ("", "")
    assert stamp.stat().st_mtime_ns == before


def test_unreachable_index_ends_in_words(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    clone.mkdir()
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, clone)
    shutil.copytree(ROOT / "tools", clone / "tools", ignore=shutil.ignore_patterns("__pycache__"))
    answer = make("setup", "ENGINE=none", cwd=clone, PIP_INDEX_URL="http://127.0.0.1:9/simple")
    assert answer.returncode != 0
    assert "http://127.0.0.1:9/simple cannot be reached" in answer.stderr
    assert "PIP_NO_INDEX=1" in answer.stderr
    assert "Traceback" not in answer.stderr
    assert not (clone / ".venv" / "llmserve-setup.json").exists()
