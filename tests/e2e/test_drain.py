"""Shutting down under load, in the order that Kubernetes does it: the server stops being
ready, the traffic moves away, the server ends."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.harness import Server, serving

pytestmark = pytest.mark.real

GRACE = 2.0
CHAT: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Hello"}],
    "max_tokens": 100,
    "ignore_eos": True,
}


def follow_readiness(server: Server, stream: bool) -> list[str]:
    """A balancer in front of a client: asks before each request whether the server is
    ready, and moves on when it is not. Returns how each request ended."""
    ends = []
    with httpx.Client(base_url=server.url, timeout=30) as client:
        while client.get("/readyz").status_code == 200:
            reply = client.post("/v1/chat/completions", json=CHAT | {"stream": stream})
            text = reply.text
            whole = "data: [DONE]" in text if stream else '"finish_reason":"length"' in text
            ends.append("complete" if reply.status_code == 200 and whole else text[-300:])
    return ends


def test_no_request_fails_for_those_who_follow_readiness(tiny_folder: Path, tmp_path: Path) -> None:
    args = [str(tiny_folder), "--set", f"server.drain_grace_s={GRACE}"]
    args += ["--set", "engine.enforce_eager=true"]
    env = {"XDG_STATE_HOME": str(tmp_path)}
    with serving(args, tmp_path / "log", env) as server, ThreadPoolExecutor(8) as pool:
        clients = [pool.submit(follow_readiness, server, number % 2 == 0) for number in range(8)]
        server.wait(lambda: server.total("llmserve_requests_total", outcome="completed") > 20, 60)
        server.signal(signal.SIGTERM)
        seconds = server.wait(lambda: server.get("/readyz").status_code == 503, 5)
        assert seconds < GRACE / 2, "readiness goes first"
        assert server.get("/livez").status_code == 200
        late = server.post("/v1/chat/completions", CHAT)
        assert late.status_code == 200, "who has not noticed yet is served"
        ends = [end for client in clients for end in client.result(60)]
        assert server.process.wait(60) == 0
    assert len(ends) > 20
    assert set(ends) == {"complete"}
    assert "Traceback" not in server.log
