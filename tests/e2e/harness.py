"""A server started the way a user starts it: as a process, by the command line."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

START_SECONDS = 280.0


class Server:
    """``llmserve serve`` in a process of its own, with its log in a file."""

    def __init__(self, args: Sequence[str], log: Path, env: dict[str, str] | None = None) -> None:
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log_path = log
        command = [sys.executable, "-m", "llmserve", "serve", *args, "--port", str(self.port)]
        # The state of whoever runs the tests is none of our business.
        own = {"XDG_STATE_HOME": str(log.parent)}
        self.started = time.monotonic()
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env=os.environ | own | (env or {})
            )

    @property
    def log(self) -> str:
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def get(self, path: str, **options: Any) -> httpx.Response:
        return httpx.get(self.url + path, timeout=30, **options)

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=120, **options)

    def wait_live(self, seconds: float = 10.0) -> None:
        self.wait(lambda: self.get("/livez").status_code == 200, seconds)

    def wait_ready(self, seconds: float = START_SECONDS) -> None:
        self.wait(lambda: self.get("/readyz").status_code == 200, seconds)

    def wait(self, condition: Callable[[], bool], seconds: float) -> float:
        """Poll until the condition holds; returns how long that took."""
        begin = time.monotonic()
        while time.monotonic() - begin < seconds:
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended ({self.process.returncode}):\n{self.log}")
            try:
                if condition():
                    return time.monotonic() - begin
            except httpx.TransportError:
                pass
            time.sleep(0.02)
        raise AssertionError(f"not within {seconds} s:\n{self.log[-4000:]}")

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def engine_core(self) -> psutil.Process:
        """The engine core: the process that the server itself has started and that has
        workers of its own, or is called so."""
        cores = [p for p in self.children() if "EngineCore" in " ".join(p.cmdline())]
        assert len(cores) == 1, self.children()
        return cores[0]

    def metrics(self, **options: Any) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        """Every sample of /metrics by its name and sorted labels."""
        families = text_string_to_metric_families(self.get("/metrics", **options).text)
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in families
            for sample in family.samples
        }

    def total(self, name: str, key: str | None = None, **labels: str) -> float:
        """The sum of a metric over all series that carry these labels; ``key`` opens it."""
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        return sum(
            value
            for (found, pairs), value in self.metrics(headers=headers).items()
            if found == name and labels.items() <= dict(pairs).items()
        )

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def stop(self) -> int:
        """Ask it to end, and wait; kill what does not."""
        if self.process.poll() is None:
            self.signal()
            try:
                self.process.wait(45)
            except subprocess.TimeoutExpired:
                for child in self.children():
                    child.kill()
                self.process.kill()
        return self.process.wait(10)


@dataclass(frozen=True)
class Key:
    """An API key, made the way an operator makes one."""

    id: str
    secret: str

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.secret}"}


def make_key(name: str, env: dict[str, str], *options: str) -> Key:
    """``llmserve keys create``, with the state that ``env`` points to."""
    command = [sys.executable, "-m", "llmserve", "keys", "create", name, "--json", *options]
    made = subprocess.run(command, env=os.environ | env, check=True, capture_output=True)
    data = json.loads(made.stdout)
    return Key(data["id"], data["key"])


@contextmanager
def serving(args: Sequence[str], log: Path, env: dict[str, str] | None = None) -> Iterator[Server]:
    """A ready server; it is stopped in the end."""
    server = Server(args, log, env)
    try:
        server.wait_ready()
        yield server
    finally:
        server.stop()


def events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    """The server-sent events of a streaming response: ``event``, ``id``, ``data``."""
    fields: dict[str, Any] = {}
    for line in response.iter_lines():
        if not line:
            if "data" in fields:
                yield fields
            fields = {}
            continue
        name, _, value = line.partition(": ")
        if name == "data":
            fields["data"] = value if value == "[DONE]" else json.loads(value)
        elif name:
            fields[name] = value


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
