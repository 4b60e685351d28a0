"""The process as a whole: memory under large bodies, files running out, and its end."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.conformance.validator import assert_openai
from tests.e2e.harness import Server, serving
from tests.http.raw import Raw, connected

HEAD = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
MIB = 2**20


@contextmanager
def fake(folder: Path, **settings: Any) -> Iterator[Server]:
    """A process with the fake engine; its keys and usage are in ``folder``."""
    args = ["--engine", "fake", "--set", f"state.url=sqlite:///{folder}/state.db"]
    for name, value in settings.items():
        args += ["--set", f"server.{name}={value}"]
    with serving(args, folder / "server.log") as server:
        yield server


def test_a_server_that_is_ready_has_a_quick_loop_and_a_quiet_collector(tmp_path: Path) -> None:
    args = ["--engine", "fake", "--set", "logging.level=debug"]
    with serving(args, tmp_path / "server.log") as server:
        said = re.search(r"event loop (\S+); (\d+) objects frozen", server.log)
    assert said is not None
    assert said[1] == "uvloop"
    assert int(said[2]) > 10_000


def test_a_gigabyte_of_body_is_refused_early_in_flat_memory(tmp_path: Path) -> None:
    with fake(tmp_path) as server:
        process = psutil.Process(server.process.pid)
        body = {"prompt": "x"}
        assert server.post("/generate", body).status_code == 200
        before = process.memory_info().rss
        for length in (
            b"Content-Length: 1073741824\r\n\r\n",
            b"Transfer-Encoding: chunked\r\n\r\n",
        ):
            with connected(server.port) as raw:
                raw.send(HEAD % b"/generate" + length)
                _pour(raw, 16, chunked=b"chunked" in length)
                assert raw.reply()[0] == 413, "long before the end"
                _pour(raw, 1008, chunked=b"chunked" in length)
        assert process.memory_info().rss - before < 40 * MIB
        assert server.post("/generate", body).status_code == 200


def _pour(raw: Raw, mebibytes: int, *, chunked: bool) -> None:
    """Send that much of a body, or what the server takes of it."""
    part = b"100000\r\n" + b" " * MIB + b"\r\n" if chunked else b" " * MIB
    for _ in range(mebibytes):
        if not raw.try_send(part):
            return


@pytest.mark.parametrize(
    ("path", "kind"), [("/generate", "error"), ("/v1/messages", "anthropic_error")]
)
def test_a_body_that_is_not_there_at_the_end_gets_503(tmp_path: Path, path: str, kind: str) -> None:
    with fake(tmp_path) as server:
        with connected(server.port) as raw:
            raw.send(HEAD % path.encode() + b'Content-Length: 100\r\n\r\n{"prompt"')
            server.wait(lambda: _arrived(server), 5)
            server.signal(signal.SIGTERM)
            status, headers, body = raw.reply()
        assert status == 503
        assert headers["retry-after"]
        assert headers["connection"] == "close"
        assert_openai(kind, json.loads(body))
        assert "shutting down" in json.loads(body)["error"]["message"]
        assert server.process.wait(10) == 0
        assert "Traceback" not in server.log
        assert "ERROR" not in server.log


def _arrived(server: Server) -> bool:
    """Whether the kernel holds nothing that the server has not read."""
    return server.get("/livez").status_code == 200


def test_half_a_head_at_the_end_gets_503_as_well(tmp_path: Path) -> None:
    with fake(tmp_path) as server, connected(server.port) as raw:
        raw.send(b"POST /generate HTTP/1.1\r\nHo")
        server.wait(lambda: _arrived(server), 5)
        server.signal(signal.SIGTERM)
        assert raw.reply()[0] == 503
        assert server.process.wait(10) == 0


def test_running_out_of_files_is_survived_without_spinning(tmp_path: Path) -> None:
    port = _free_port()
    serve = [sys.executable, "-m", "llmserve", "serve", "--engine", "fake", "--port", str(port)]
    serve += ["--set", f"state.url=sqlite:///{tmp_path}/state.db"]
    limited = ["bash", "-c", 'ulimit -n 100; exec "$@"', "-", *serve]
    log = tmp_path / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(limited, stdout=output, stderr=subprocess.STDOUT)
    try:
        _wait(lambda: _answers(port))
        held = []
        for _ in range(300):
            connection = socket.create_connection(("127.0.0.1", port), timeout=5)
            connection.setblocking(False)
            held.append(connection)
        used = _cpu_seconds(process.pid)
        time.sleep(1.0)  # The span over which CPU time is measured.
        assert _cpu_seconds(process.pid) - used < 0.5
        for connection in held:
            connection.close()
        _wait(lambda: _answers(port))
        assert "only 50 connections: the limit of open files is 100" in log.read_text()
    finally:
        process.terminate()
        process.wait(20)


def _answers(port: int) -> bool:
    try:
        url = f"http://127.0.0.1:{port}/generate"
        return httpx.post(url, json={"prompt": "x"}, timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def _cpu_seconds(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def _wait(condition: Any) -> None:
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("not within 20 s")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
