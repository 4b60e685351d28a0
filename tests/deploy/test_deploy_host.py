"""The systemd unit and the nginx site."""

# The programs that are run here are fixed, not input.
from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from llmserve.settings import LimitSettings, ServerSettings
from llmserve.settings_load import load_settings

Unit = dict[str, dict[str, list[str]]]


def test_the_server_accepts_the_unit_s_environment(unit: Unit) -> None:
    given = dict(pair.split("=", 1) for pair in unit["Service"]["Environment"])
    load_settings(environ=given)
    [cache] = unit["Service"]["CacheDirectory"]
    for name in ("HOME", "XDG_CACHE_HOME", "LLMSERVE_CACHE", "HF_HOME"):
        assert given[name].startswith(f"%C/{cache}"), name


def test_the_unit_starts_a_command_that_exists(unit: Unit, serve_flags: frozenset[str]) -> None:
    program, command, *rest = unit["Service"]["ExecStart"][0].split()
    assert Path(program).name == "llmserve"
    assert command == "serve"
    assert {word for word in rest if word.startswith("--")} <= serve_flags


def test_stopping_the_unit_drains(unit: Unit) -> None:
    service = unit["Service"]
    assert service["KillMode"] == ["mixed"]
    assert service["KillSignal"] == ["SIGTERM"]
    assert int(service["TimeoutStopSec"][0]) > ServerSettings().drain_timeout_s


def test_systemd_accepts_the_unit(unit: Unit, root: Path, tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    # It wants the program to exist; everything else is as it is installed.
    program = unit["Service"]["ExecStart"][0].split()[0]
    text = (root / "deploy/llmserve.service").read_text()
    (tmp_path / "llmserve.service").write_text(text.replace(f"={program} ", "=/bin/true "))
    done = subprocess.run(
        [analyze, "verify", "--man=no", str(tmp_path / "llmserve.service")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    ours = [line for line in done.stderr.splitlines() if "llmserve" in line]
    assert not ours


def _nginx(root: Path, directive: str) -> str:
    text = (root / "deploy/nginx/llmserve.conf").read_text()
    [value] = re.findall(rf"^\s*{directive} ([^;]+);", text, flags=re.MULTILINE)
    return value


def test_nginx_lets_streams_and_bodies_through(root: Path, routes: frozenset[str]) -> None:
    assert _nginx(root, "proxy_buffering") == "off"
    assert _nginx(root, "proxy_http_version") == "1.1"
    body = int(_nginx(root, "client_max_body_size").removesuffix("m")) * 2**20
    assert body > LimitSettings().max_body_bytes
    timeout = int(_nginx(root, "proxy_read_timeout").removesuffix("s"))
    assert timeout > ServerSettings().request_timeout_s
    text = (root / "deploy/nginx/llmserve.conf").read_text()
    assert f"server 127.0.0.1:{ServerSettings().port};" in text
    for path in re.findall(r"location = (\S+)", text):
        assert path in routes


def test_nginx_accepts_the_site(root: Path, tmp_path: Path) -> None:
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if nginx is None:
        pytest.skip("nginx is not installed")
    temporary = "".join(
        f"{kind}_temp_path {tmp_path}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    site = (root / "deploy/nginx/llmserve.conf").read_text()
    # A port above 1024, which anybody may open.
    (tmp_path / "site.conf").write_text(site.replace("listen 80;", "listen 18080;"))
    (tmp_path / "nginx.conf").write_text(
        f"pid {tmp_path}/pid; error_log {tmp_path}/error.log; events {{}}\n"
        f"http {{ access_log off; {temporary} include {tmp_path}/site.conf; }}\n"
    )
    done = subprocess.run(
        [nginx, "-t", "-e", str(tmp_path / "error.log"), "-c", str(tmp_path / "nginx.conf")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
