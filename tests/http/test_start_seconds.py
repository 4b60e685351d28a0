"""/readyz says how long each stage of the start took, or has taken so far."""

from __future__ import annotations

import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from llmserve.engine.fake import Script
from llmserve.types import Stage
from tests.http.harness import App, poll, running


def seconds(app: App) -> dict[str, float]:
    found: dict[str, float] = app.get("/readyz").json()["start_seconds"]
    return found


def test_a_stage_counts_on_until_it_is_over() -> None:
    script = Script(stages=((Stage.IMPORTING, 0.2), (Stage.LOADING, 30.0)))
    with running(script, ready=False) as app:
        poll(lambda: app.get("/readyz").json()["stage"] == "loading")
        first = seconds(app)
        assert list(first) == ["starting", "importing", "loading"]
        assert 0.2 <= first["importing"] < 5
        poll(lambda: seconds(app)["loading"] > first["loading"])
        assert seconds(app)["importing"] == first["importing"], "what is over stays as it was"


def test_the_whole_start_stays_to_be_seen() -> None:
    script = Script(stages=((Stage.IMPORTING, 0.1), (Stage.LOADING, 0.2), (Stage.WARMING, 0.0)))
    with running(script) as app:
        ready = app.get("/readyz").json()
        assert ready["status"] == "ready"
        took = ready["start_seconds"]
        assert list(took) == ["starting", "importing", "loading", "warming"]
        assert took["importing"] >= 0.1
        assert took["loading"] >= 0.2
        assert seconds(app) == took, "ready is no stage of the start"
        assert app.get("/healthz").json()["readiness"]["start_seconds"] == took


def test_a_restart_has_a_timeline_of_its_own() -> None:
    with running(Script(die_after_tokens=5)) as app:
        app.post("/generate/stream", json={"prompt": "x"})
        poll(lambda: app.get("/healthz").json()["engine_restarts"] == 1)
        poll(lambda: app.get("/readyz").status_code == 200)
        assert next(iter(seconds(app))) == "restarting"


def test_the_log_says_it_once_the_server_is_ready(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "llmserve", "serve", "--engine", "fake", "--port", str(port)]
    url = f"http://127.0.0.1:{port}/readyz"
    seen: list[dict[str, float]] = []

    def ready() -> bool:
        try:
            reply = httpx.get(url)
        except httpx.TransportError:
            return False
        seen.append(reply.json()["start_seconds"])
        return reply.status_code == 200

    env = os.environ | {"HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path)}
    began = time.monotonic()
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
        try:
            poll(ready)
            within = time.monotonic() - began
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(20)
    assert process.returncode == 0
    (line,) = [
        line for line in (tmp_path / "log").read_text().splitlines() if "ready after" in line
    ]
    logged = {stage: float(took) for stage, took in re.findall(r"(\w+) ([\d.]+)(?=[,)])", line)}
    # Each has rounded the same time in its own way.
    assert logged == pytest.approx(seen[-1], abs=0.06)
    assert 0 < sum(seen[-1].values()) <= within, "imports before the first stage count as well"
    assert all("starting" in each for each in seen)
    starting = [each["starting"] for each in seen]
    assert all(one <= next_ for one, next_ in itertools.pairwise(starting)), "it never goes back"
