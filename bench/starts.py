"""A part: how long a start takes, until the server lives and until the first token."""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable

import msgspec

from bench import models
from bench.cases import MODEL
from bench.client import BenchError
from bench.parts import Setup
from bench.servers import START_SECONDS, Server, start_ours, start_theirs
from bench.values import OURS, Found, Value

LIVE, FIRST = "start to live s", "start to first token s"
LIVE_POLL_SECONDS = 0.002
TOKEN_POLL_SECONDS = 0.05
BODY = msgspec.json.encode(
    {"model": MODEL, "prompt": "The sea", "max_tokens": 1, "temperature": 0, "ignore_eos": True}
)


class Starts:
    """Starts of both servers with the demo model, one at a time and in turns. The first
    start of each does not count: it warms the disk cache."""

    name = "starts"

    def keys(self, setup: Setup) -> list[str]:
        """One thing, and only with vLLM."""
        return ["start"] if setup.with_vllm else []

    async def measure(self, setup: Setup) -> Found:
        """Measure; nothing else goes on meanwhile, so it may block."""
        model = models.demo()
        found = Found()
        starters = (start_ours, start_theirs)
        for number in range(0 if setup.quick else -1, setup.rounds):
            for start in starters if number % 2 == 0 else reversed(starters):
                said = "warm-up" if number < 0 else f"round {number + 1}/{setup.rounds}"
                setup.say(f"{said}: a start")
                server = start(model, setup.arguments, setup.folder)
                try:
                    live, first = time_start(server)
                finally:
                    server.stop()
                if number >= 0:
                    found.values += [
                        Value(LIVE, server.name, number, live, 2),
                        Value(FIRST, server.name, number, first, 2),
                    ]
        return found


def time_start(server: Server) -> tuple[float, float]:
    """Seconds from the start of the process to the first sign of life, and to a token."""
    path = "/livez" if server.name == OURS else server.ready_path
    live = _wait(server, lambda: _status(server.port, "GET", path, None), LIVE_POLL_SECONDS)
    ask = "/v1/completions"
    first = _wait(server, lambda: _status(server.port, "POST", ask, BODY), TOKEN_POLL_SECONDS)
    return live, first


def _wait(server: Server, ask: Callable[[], int], pause: float) -> float:
    while (spent := time.perf_counter() - server.began) < START_SECONDS:
        if ask() == 200:
            return time.perf_counter() - server.began
        server.check_running()
        time.sleep(pause)
    raise BenchError(f"no answer {spent:.0f} s after the start: {server.state()}")


def _status(port: int, method: str, path: str, body: bytes | None) -> int:
    """The status of the answer; 0 when there is none."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"})
        reply = connection.getresponse()
        reply.read()
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()
    return reply.status
