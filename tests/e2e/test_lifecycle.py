"""One server from its first second to its last: start, disconnects, the death of its
engine, drain. The tests run in this order, on one tiny model."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.e2e.harness import Server, events

LONG: dict[str, Any] = {
    "prompt": "Once upon a time",
    "max_tokens": 6000,
    "ignore_eos": True,
    "temperature": 0,
}


@pytest.fixture(scope="module")
def server(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("lifecycle") / "log"
    args = [str(tiny_folder), "--served-model-name", "tiny", "--set", "server.drain_timeout_s=6"]
    args += ["--set", "runtime.stall_timeout_s=3", "--set", "server.keep_alive_s=1"]
    server = Server(args, log)
    yield server
    server.stop()


def running(server: Server) -> float:
    return server.total("vllm:num_requests_running")


def test_is_live_within_a_second_and_says_that_it_is_not_ready(server: Server) -> None:
    server.wait_live()
    # Processor time, so that a busy machine does not fail the test: with one to itself
    # the process is live that many seconds after its start.
    times = psutil.Process(server.process.pid).cpu_times()
    assert times.user + times.system < 1
    reply = server.get("/readyz")
    assert reply.status_code == 503
    assert reply.headers["retry-after"]
    assert reply.json()["stage"] in ("starting", "installing", "importing", "loading")
    refused = server.post("/v1/completions", {"prompt": "x", "model": "tiny"})
    assert refused.status_code == 503
    assert refused.headers["retry-after"]
    assert refused.json()["error"]["code"] == "model_not_ready"


def test_stages_come_in_order_until_a_token_was_generated(server: Server) -> None:
    seen: list[str] = []

    def ready() -> bool:
        stage = server.get("/readyz").json()["stage"]
        if not seen or seen[-1] != stage:
            seen.append(stage)
        return bool(stage == "ready")

    server.wait(ready, 180)
    order = ["starting", "installing", "importing", "loading", "warming", "ready"]
    assert [stage for stage in order if stage in seen] == seen
    assert "loading" in seen
    assert server.total("vllm:generation_tokens_total") == 1


@pytest.mark.parametrize("path", ["/generate/stream", "/generate"])
def test_a_client_that_goes_away_frees_the_engine_within_a_second(
    server: Server, path: str
) -> None:
    server.wait_ready()
    body = httpx.Request("POST", server.url + path, json=LONG)
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        head = "".join(f"{name}: {value}\r\n" for name, value in body.headers.items())
        connection.sendall(f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + body.content)
        server.wait(lambda: running(server) == 1, 10)
    assert server.wait(lambda: running(server) == 0, 10) < 1
    assert server.total("llmserve_requests_total", route=path, outcome="disconnected") == 1


def test_openai_clients_that_go_away_free_the_engine_too(server: Server) -> None:
    url, timeout = server.url + "/v1/completions", httpx.Timeout(30, read=0.6)
    with httpx.stream("POST", url, json=LONG | {"model": "tiny", "stream": True}) as response:
        next(events(response))
    assert server.wait(lambda: running(server) == 0, 10) < 1
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(url, json=LONG | {"model": "tiny"}, timeout=timeout)
    assert server.wait(lambda: running(server) == 0, 10) < 1
    route = "/v1/completions"
    assert server.total("llmserve_requests_total", route=route, outcome="disconnected") == 2


def test_the_engine_is_deaf_to_ctrl_c(server: Server) -> None:
    """A terminal sends SIGINT to everybody; only the server may act on it."""
    engine = [process for process in server.children() if "VLLM" in _title(process.pid)]
    assert len(engine) == 2
    assert all(blocks_sigint(process) for process in engine)


def test_usage_of_cut_off_requests_is_counted(server: Server) -> None:
    """Four requests were cut off above; vLLM's own success counters know none of them."""
    assert server.total("llmserve_completion_tokens_total") > 4
    assert server.total("llmserve_prompt_tokens_total") == 4 * 4


def test_an_engine_that_stands_still_is_not_ready_until_it_moves(server: Server) -> None:
    server.wait_ready()
    core = server.engine_core()
    with httpx.stream("POST", server.url + "/generate/stream", json=LONG, timeout=60) as response:
        stream = events(response)
        next(stream)
        core.suspend()
        try:
            assert server.wait(lambda: server.get("/readyz").status_code == 503, 20) > 1
            readiness = server.get("/readyz").json()
            assert readiness["stage"] == "stalled"
            assert "no step for" in readiness["reason"]
            assert server.get("/livez").status_code == 200
            refused = server.post("/generate", LONG)
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "model_not_ready"
        finally:
            core.resume()
        server.wait(lambda: server.get("/readyz").status_code == 200, 20)
        next(stream)
    server.wait(lambda: running(server) == 0, 10)
    assert server.total("llmserve_engine_restarts_total") == 0


def _consume(server: Server, stream: bool) -> tuple[int, dict[str, Any]]:
    """Status and last event (or body) of one long request."""
    path = "/generate/stream" if stream else "/generate"
    with httpx.stream("POST", server.url + path, json=LONG, timeout=60) as response:
        if not stream or response.status_code != 200:
            response.read()
            return response.status_code, response.json()
        return response.status_code, list(events(response))[-1]


def test_the_death_of_the_engine_core_is_clean_and_mends_itself(server: Server) -> None:
    before = {child.pid for child in server.children()}
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(_consume, server, i % 2 == 0) for i in range(8)]
        server.wait(lambda: running(server) == 8, 20)
        os.kill(server.engine_core().pid, signal.SIGKILL)
        begin = time.monotonic()
        results = [future.result(timeout=30) for future in futures]
    assert time.monotonic() - begin < 10
    for index, (status, body) in enumerate(results):
        if index % 2 == 0:
            assert status == 200
            assert body["event"] == "error"
            assert body["data"]["error"]["code"] == "engine_died"
        else:
            assert status == 503
            assert body["error"]["code"] == "engine_died"
    server.wait(lambda: server.get("/readyz").status_code == 503, 5)
    server.wait_live()
    server.wait_ready()
    assert server.post("/generate", LONG | {"max_tokens": 3}).json()["usage"] == {
        "prompt_tokens": 4,
        "cached_tokens": 0,
        "completion_tokens": 3,
    }
    assert server.total("llmserve_engine_restarts_total") == 1
    survivors = before & {child.pid for child in server.children()}
    assert not [pid for pid in survivors if "VLLM" in _title(pid)]


def _title(pid: int) -> str:
    try:
        return " ".join(psutil.Process(pid).cmdline())
    except psutil.NoSuchProcess:
        return ""


def test_sigterm_drains_and_leaves_nothing_behind(server: Server) -> None:
    """A short stream finishes, a long one ends in an error event, new work is refused,
    and no process is left."""
    family = [psutil.Process(server.process.pid), *server.children()]
    long_end: dict[str, Any] = {}

    def long() -> None:
        long_end["result"] = _consume(server, stream=True)

    thread = threading.Thread(target=long)
    thread.start()
    server.wait(lambda: running(server) == 1, 10)
    # Few tokens: however slow a busy machine is, they take less than the drain may last.
    short = LONG | {"max_tokens": 100}
    with httpx.stream("POST", server.url + "/generate/stream", json=short) as response:
        stream = events(response)
        next(stream)
        logged = len(server.log)
        server.signal(signal.SIGTERM)
        server.wait(lambda: server.get("/readyz").status_code == 503, 2)
        assert server.get("/readyz").json()["stage"] == "draining"
        refused = server.post("/v1/messages", {"model": "tiny", "max_tokens": 4, "messages": []})
        assert refused.status_code in (400, 503)
        refused = server.post("/generate", LONG)
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        assert refused.json()["error"]["code"] == "server_shutting_down"
        assert list(stream)[-1]["event"] == "done"
    thread.join(30)
    assert not thread.is_alive()
    status, last = long_end["result"]
    assert status == 200
    assert last["event"] == "error"
    assert last["data"]["error"]["code"] == "server_shutting_down"
    assert server.process.wait(30) == 0
    _gone, alive = psutil.wait_procs(family, timeout=10)
    assert not alive
    assert "Traceback" not in server.log[logged:]
    assert "Warning" not in server.log[logged:]


def test_sigterm_while_loading_ends_quietly(tiny_folder: Path, tmp_path: Path) -> None:
    server = Server([str(tiny_folder)], tmp_path / "log")
    try:
        server.wait_live()
        server.wait(lambda: bool(server.children()), 120)
        family = server.children()
        server.signal(signal.SIGTERM)
        assert server.process.wait(60) == 0
        _gone, alive = psutil.wait_procs(family, timeout=10)
        assert not alive
        assert "Traceback" not in server.log
    finally:
        server.stop()


def test_kill_9_of_the_server_leaves_nothing_behind(tiny_folder: Path, tmp_path: Path) -> None:
    # Not below tmp_path: the path of a socket has 107 bytes.
    temporary = tempfile.mkdtemp()
    server, family = Server([str(tiny_folder)], tmp_path / "log", {"TMPDIR": temporary}), []
    try:
        server.wait_ready()
        family = server.children()
        assert len([process for process in family if "VLLM" in _title(process.pid)]) == 2
        server.signal(signal.SIGKILL)
        deadline = time.monotonic() + 5
        while any(map(_lives, family)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not [process for process in family if _lives(process)]
        assert not [path for path in Path(temporary).iterdir() if path.is_socket()]
        assert not list(Path(temporary).glob("llmserve-*"))
    finally:
        server.process.kill()
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        shutil.rmtree(temporary)


def _lives(process: psutil.Process) -> bool:
    """A zombie does not: whoever adopted it may never ask for its end."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def blocks_sigint(process: psutil.Process) -> bool:
    status = Path(f"/proc/{process.pid}/status").read_text("utf-8")
    (mask,) = [line.split()[1] for line in status.splitlines() if line.startswith("SigBlk:")]
    return bool(int(mask, 16) & (1 << (signal.SIGINT - 1)))


def test_a_second_signal_ends_at_once(tiny_folder: Path, tmp_path: Path) -> None:
    server = Server([str(tiny_folder), "--set", "server.drain_timeout_s=60"], tmp_path / "log")
    try:
        server.wait_ready()
        family = server.children()
        thread = threading.Thread(target=_ignore_end, args=(server,))
        thread.start()
        server.wait(lambda: running(server) == 1, 10)
        server.signal(signal.SIGINT)
        server.wait(lambda: server.get("/readyz").status_code == 503, 5)
        begin = time.monotonic()
        server.signal(signal.SIGINT)
        assert server.process.wait(10) != 0
        assert time.monotonic() - begin < 2
        _gone, alive = psutil.wait_procs(family, timeout=10)
        assert not alive
        thread.join(10)
    finally:
        server.stop()


def _ignore_end(server: Server) -> None:
    with contextlib.suppress(httpx.TransportError):
        _consume(server, stream=True)
