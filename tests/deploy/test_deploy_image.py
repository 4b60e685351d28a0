"""Dockerfile.cuda and .dockerignore: there is no Docker engine in the tests, so they are
checked against the package, the settings and a linter."""

# The programs that are run here are fixed, not input.
from __future__ import annotations

import fnmatch
import json
import re
import shutil
import subprocess
import sys
import threading
import tomllib
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from llmserve.settings import ServerSettings
from llmserve.settings_load import load_settings


def test_hadolint_finds_nothing(root: Path) -> None:
    beside_python = Path(sys.executable).with_name("hadolint")
    hadolint = str(beside_python) if beside_python.exists() else shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run(
        [hadolint, str(root / "Dockerfile.cuda")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_every_image_is_pinned_by_digest(dockerfile) -> None:
    for image in dockerfile.args.values():
        assert re.fullmatch(r"[\w./-]+:[\w.-]+@sha256:[0-9a-f]{64}", image)
    arguments = {f"${{{name}}}" for name in dockerfile.args}
    for stage in dockerfile.stages.values():
        assert stage.base in arguments | set(dockerfile.stages)


def test_the_last_stage_is_the_server_not_the_one_with_a_compiler_for_cuda(dockerfile) -> None:
    last = list(dockerfile.stages)[-1]
    assert last == "server"
    assert [stage.name for stage in dockerfile.lineage(last)] == ["base", "runtime", "server"]


@pytest.mark.parametrize("stage", ["server", "jit"])
def test_it_runs_as_a_numbered_user(dockerfile, stage: str) -> None:
    user = dockerfile.all("USER", stage)[-1]
    assert re.fullmatch(r"\d+:\d+", user)
    assert not user.startswith("0")


def test_no_build_tool_is_left_in_the_image(dockerfile) -> None:
    """uv, pip's cache and the sources come and go with the RUN that needs them."""
    for value in dockerfile.all("COPY"):
        assert value == "--from=dependencies /opt/llmserve /opt/llmserve"
    for value in dockerfile.all("RUN"):
        assert "git" not in value.split()
        if "uv pip install" in value:
            assert "--mount=type=bind,from=uv" in value
            assert "--no-cache" in value
        if "apt-get install" in value:
            assert "--no-install-recommends" in value
            assert "rm -rf /var/lib/apt/lists/*" in value


def test_the_environment_is_one_that_the_server_accepts(dockerfile) -> None:
    loaded = load_settings(environ=dockerfile.env())
    assert loaded.settings.server.host == "0.0.0.0"  # noqa: S104
    assert loaded.settings.server.port == ServerSettings().port


def test_ports_agree(dockerfile) -> None:
    port = str(ServerSettings().port)
    assert dockerfile.all("EXPOSE") == [port]
    assert dockerfile.env()["LLMSERVE_SERVER__PORT"] == port


def test_usage_statistics_are_off(dockerfile) -> None:
    env = dockerfile.env()
    assert env["VLLM_NO_USAGE_STATS"] == "1"
    assert env["DO_NOT_TRACK"] == "1"


def test_every_cache_is_inside_the_volume_and_the_user_owns_it(dockerfile) -> None:
    volume, state = dockerfile.all("VOLUME")
    caches = {name: value for name, value in dockerfile.env().items() if "cache" in value}
    assert {"HF_HOME", "LLMSERVE_CACHE", "VLLM_CACHE_ROOT", "XDG_CACHE_HOME"} <= caches.keys()
    for name, value in caches.items():
        assert Path(value).is_relative_to(volume), name
    uid, gid = dockerfile.all("USER")[-1].split(":")
    made = f"install -d -o {uid} -g {gid} {volume} {state}"
    assert any(made in run for run in dockerfile.all("RUN"))
    assert state == f"{dockerfile.env()['XDG_STATE_HOME']}/llmserve"


def test_it_starts_the_command_that_the_package_installs(
    dockerfile, root: Path, serve_flags: frozenset[str]
) -> None:
    scripts = tomllib.loads((root / "pyproject.toml").read_text())["project"]["scripts"]
    entrypoint = json.loads(dockerfile.all("ENTRYPOINT")[-1])
    command = json.loads(dockerfile.all("CMD")[-1])
    assert len(entrypoint) == 1
    assert entrypoint[0] in scripts
    assert command[0] == "serve"
    assert {word for word in command if word.startswith("--")} <= serve_flags
    assert dockerfile.all("STOPSIGNAL") == ["SIGTERM"]


def test_the_extra_that_is_installed_exists(dockerfile, root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    installs = " ".join(dockerfile.stages["dependencies"].all("RUN"))
    extras = re.findall(r"--extra (\S+)", installs)
    assert extras == ["cuda"]
    assert "cuda" in project["optional-dependencies"]


def _health_check(dockerfile) -> list[str]:
    [value] = dockerfile.all("HEALTHCHECK")
    _, _, command = value.partition(" CMD ")
    return json.loads(command)


def test_the_health_check_asks_a_route_that_exists(dockerfile, routes: frozenset[str]) -> None:
    program = _health_check(dockerfile)[-1]
    [path] = re.findall(r"'(/[a-z]+)'", program)
    assert path in routes


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False), (None, False)])
def test_the_health_check_works(dockerfile, status: int | None, healthy: bool) -> None:
    """Run for real, once against each answer and once against nobody; a proxy that the
    environment names must not get in between."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status or 500)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        port = server.server_port
        if status is not None:
            threading.Thread(target=server.serve_forever, daemon=True).start()
        else:
            server.server_close()
        done = subprocess.run(
            [sys.executable, *_health_check(dockerfile)[1:]],
            env={"LLMSERVE_SERVER__PORT": str(port), "http_proxy": "http://127.0.0.1:9"},
            capture_output=True,
            timeout=30,
            check=False,
        )
        if status is not None:
            server.shutdown()
    assert (done.returncode == 0) is healthy


def _in_context(root: Path, path: str) -> bool:
    """Whether .dockerignore lets a file into the build context: the last line that
    matches the file or a folder above it decides."""
    kept = True
    for line in (root / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!").strip("/")
        parts = Path(path).parts
        heads = ["/".join(parts[: end + 1]) for end in range(len(parts))]
        if pattern.startswith("**/"):
            tail = pattern.removeprefix("**/")
            matches = any(fnmatch.fnmatchcase(part, tail) for part in parts)
        else:
            matches = any(fnmatch.fnmatchcase(head, pattern) for head in heads)
        if matches:
            kept = line.startswith("!")
    return kept


def test_the_build_context_holds_what_is_copied_and_nothing_private(dockerfile, root: Path) -> None:
    for stage in ("dependencies", "wheel"):
        for value in dockerfile.stages[stage].all("COPY"):
            for source in value.split()[:-1]:
                inside = f"{source}/__init__.py" if (root / source).is_dir() else source
                assert (root / inside).exists(), source
                assert _in_context(root, inside), source
    for private in (
        ".git/config",
        ".venv/bin/python",
        "deploy/.env",
        "tests/models.py",
        "llmserve/__pycache__/app.cpython-311.pyc",
    ):
        assert not _in_context(root, private), private


def test_a_complete_wheel_can_be_built_from_the_build_context_alone(
    root: Path, tmp_path: Path
) -> None:
    pytest.importorskip("hatchling", reason="the build backend is not installed")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],  # noqa: S607
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    context = tmp_path / "context"
    files = [name for name in listed if _in_context(root, name) and (root / name).is_file()]
    for name in files:
        (context / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / name, context / name)
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")],
        cwd=context,
        capture_output=True,
        check=True,
    )
    [wheel] = (tmp_path / "dist").glob("*.whl")
    package = {name for name in files if name.startswith("llmserve/")}
    assert package <= set(zipfile.ZipFile(wheel).namelist())
