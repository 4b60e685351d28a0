"""tools/setup_env.py: the decisions it makes before it installs anything."""

from __future__ import annotations

import importlib.util
import platform
import socket
import sys
from pathlib import Path
from types import ModuleType

import pytest

TOOL = Path(__file__).resolve().parents[3] / "tools" / "setup_env.py"


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The tool, at work in an empty folder."""
    spec = importlib.util.spec_from_file_location("setup_env", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(module, "PYTHON", tmp_path / ".venv" / "bin" / "python")
    monkeypatch.setattr(module, "STAMP", tmp_path / ".venv" / "stamp.json")
    (tmp_path / "pyproject.toml").write_text("")
    return module


def venv(tool: ModuleType) -> None:
    tool.PYTHON.parent.mkdir(parents=True)
    tool.PYTHON.symlink_to(sys.executable)


@pytest.mark.parametrize("gpu", [True, False])
def test_engine_follows_the_hardware(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, gpu: bool
) -> None:
    monkeypatch.setattr(tool, "has_gpu", lambda: gpu)
    assert tool.choose_engine("auto") == ("cuda" if gpu else "cpu")
    assert tool.choose_engine("cpu") == "cpu"


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("sys.platform", "darwin", "no wheels for"),
        ("platform.machine", lambda: "riscv64", "riscv64"),
        ("platform.libc_ver", lambda: ("", ""), "glibc 2.28"),
        ("platform.libc_ver", lambda: ("glibc", "2.17"), "glibc 2.17"),
        ("NEWEST_PYTHON", (3, 10), "Python"),
    ],
)
def test_machines_without_wheels_are_told(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str, value: object, reason: str
) -> None:
    owner, _, attribute = name.rpartition(".")
    monkeypatch.setattr(getattr(tool, owner) if owner else tool, attribute, value)
    with pytest.raises(tool.Failure, match=reason) as caught:
        tool.choose_engine("auto")
    assert "ENGINE=none" in str(caught.value)
    assert tool.choose_engine("none") == "none"


def test_stamp_holds_until_something_changes(tool: ModuleType) -> None:
    assert not tool.is_current("cpu", False)
    venv(tool)
    tool.write_stamp("cpu", False)
    assert tool.is_current("cpu", False)
    assert not tool.is_current("cpu", True)
    assert not tool.is_current("cuda", False)
    tool.write_stamp("cpu", True)
    assert tool.is_current("cpu", False)
    (tool.ROOT / "pyproject.toml").write_text("changed")
    assert not tool.is_current("cpu", False)


def test_broken_environments_are_not_current(tool: ModuleType) -> None:
    venv(tool)
    tool.write_stamp("cpu", False)
    tool.STAMP.write_text("{")
    assert not tool.is_current("cpu", False)
    tool.write_stamp("cpu", False)
    tool.PYTHON.unlink()
    tool.PYTHON.symlink_to("/nowhere/python")
    assert not tool.is_current("cpu", False)
    assert not tool.venv_works()


PIP_CONFIG = r"""
:env:.find-links='/wheels https://mirror/torch/'
:env:.disable-pip-version-check='1'
global.cert='/etc/company.pem'
global.extra-index-url='\nhttps://user:secret@two/simple\nhttps://three/simple'
global.find-links='/overridden'
global.index-url='https://one/simple'
install.trusted-host='two'
wheel.index-url='https://not-this-one'
"""


def test_sources_of_pip_become_those_of_uv(tool: ModuleType) -> None:
    tool.PYTHON.parent.mkdir(parents=True)
    tool.PYTHON.write_text(f"#!/bin/sh\ncat <<'END'\n{PIP_CONFIG}END\n")
    tool.PYTHON.chmod(0o755)
    sources = tool.read_sources()
    assert tool.uv_arguments(sources) == [
        *("--default-index", "https://one/simple"),
        *("--index", "https://user:secret@two/simple"),
        *("--index", "https://three/simple"),
        *("--index-strategy", "unsafe-best-match"),
        *("--find-links", "/wheels"),
        *("--find-links", "https://mirror/torch/"),
        *("--allow-insecure-host", "two"),
    ]
    assert tool.uv_environment(sources)["SSL_CERT_FILE"] is not None
    assert sources.cert == "/etc/company.pem"
    assert tool.without_password(sources.extra[0]) == "https://two/simple"


def test_no_index_uses_local_folders_only(tool: ModuleType) -> None:
    sources = tool.Sources(no_index=True, find_links=("/wheels",))
    tool.check_index(sources)
    assert tool.torch_arguments(sources) == []
    assert tool.uv_arguments(sources) == ["--no-index", "--find-links", "/wheels"]


def test_local_folder_with_torch_needs_no_other_index(tool: ModuleType, tmp_path: Path) -> None:
    sources = tool.Sources(find_links=(str(tmp_path),))
    assert not tool.has_local_torch(sources)
    tag = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    (tmp_path / f"torch-2.13.0+cpu-{tag}-{tag}-linux_{platform.machine()}.whl").touch()
    assert tool.torch_arguments(sources) == []


def test_torch_comes_from_pytorch_when_it_answers(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("UV_TORCH_BACKEND", raising=False)
    monkeypatch.setattr(tool, "reachable", lambda *_: None)
    assert tool.torch_arguments(tool.Sources()) == ["--torch-backend", "cpu"]
    monkeypatch.setattr(tool, "reachable", lambda *_: "it is down")
    with pytest.raises(tool.Failure, match="it is down") as caught:
        tool.torch_arguments(tool.Sources())
    assert "PIP_FIND_LINKS" in str(caught.value)
    assert tool.torch_arguments(tool.Sources(main="https://mirror/simple")) == []


def test_silent_index_is_given_up_in_time(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool, "PROBE_SECONDS", 0.2)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        url = f"http://user:secret@127.0.0.1:{listener.getsockname()[1]}/simple"
        with pytest.raises(tool.Failure, match="cannot be reached") as caught:
            tool.check_index(tool.Sources(main=url))
    assert "secret" not in str(caught.value)
    assert "PIP_NO_INDEX" in str(caught.value)


def test_index_in_a_folder(tool: ModuleType, tmp_path: Path) -> None:
    assert tool.reachable(f"file://{tmp_path}", tool.Sources()) is None
    assert "no such folder" in tool.reachable(f"file://{tmp_path}/not", tool.Sources())


def test_failed_step_says_what_to_do(tool: ModuleType) -> None:
    with pytest.raises(tool.Failure, match=r"status 3 .* Try this\."):
        tool.run("a step", ["/bin/sh", "-c", "exit 3"], "Try this.")
    with pytest.raises(tool.Failure, match=r"No such file"):
        tool.run("a step", ["/nowhere/at/all"], "Try this.")


def test_full_disk_is_seen_first(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "make_venv", lambda: None)
    monkeypatch.setitem(tool.NEEDED_GB, "cpu", 10**9)
    with pytest.raises(tool.Failure, match="GB free"):
        tool.install("cpu", False)
