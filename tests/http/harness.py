"""The real application over a real socket, with a scripted engine behind it."""

from __future__ import annotations

import asyncio
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI

from llmserve.app import build_app, build_services
from llmserve.engine.fake import FakeEngine, Script
from llmserve.engine.protocol import Engine, Report
from llmserve.http.connection import protocol_class
from llmserve.services import Services
from llmserve.settings import Settings
from llmserve.state.protocol import ApiKey
from llmserve.state.secrets import digest, new_key

Nested = dict[str, Any]


class App(httpx.Client):
    """A running application and a client for it."""

    def __init__(self, asgi: FastAPI, loop: asyncio.AbstractEventLoop, port: int) -> None:
        super().__init__(base_url=f"http://127.0.0.1:{port}", timeout=20)
        self.asgi = asgi
        self.services: Services = asgi.state.services
        self.loop = loop
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    def call(self, function: Any, *args: Any) -> Any:
        """Call a function on the application's event loop; its result."""

        async def run() -> Any:
            return function(*args)

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(10)

    def key(self, name: str = "somebody", **fields: Any) -> str:
        """A new API key, known to the application; ``fields`` are those of ``ApiKey``."""
        secret = new_key()
        key = ApiKey(
            id=f"id-{name}", name=name, prefix=secret[:8], created_at=time.time(), **fields
        )
        self.services.store.create_key(key, digest(secret))
        self.services.authenticator.refresh()
        return secret

    def sample(self, name: str, **labels: str) -> float:
        """A metric as /metrics shows it, summed over the series with these labels."""
        from prometheus_client.parser import text_string_to_metric_families

        return sum(
            sample.value
            for family in text_string_to_metric_families(self.get("/metrics").text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def outcomes(self) -> dict[str, float]:
        """How the requests so far have ended."""
        from prometheus_client.parser import text_string_to_metric_families

        counts: dict[str, float] = {}
        for family in text_string_to_metric_families(self.get("/metrics").text):
            for sample in family.samples:
                if sample.name == "llmserve_requests_total" and sample.value:
                    outcome = sample.labels["outcome"]
                    counts[outcome] = counts.get(outcome, 0) + sample.value
        return counts


@contextmanager
def running(
    script: Script = Script(),  # noqa: B008  # frozen
    *,
    ready: bool = True,
    make_engine: Callable[[Script], Engine] = FakeEngine,
    **sections: Nested,
) -> Iterator[App]:
    """Run the application; ``sections`` are settings, as ``server={"keep_alive_s": 1}``."""
    with (
        tempfile.TemporaryDirectory() as folder,
        _running(script, Path(folder) / "state.db", make_engine, ready, sections) as app,
    ):
        yield app


@contextmanager
def _running(
    script: Script,
    state: Path,
    make_engine: Callable[[Script], Engine],
    ready: bool,
    sections: dict[str, Nested],
) -> Iterator[App]:
    sections.setdefault("auth", {"open_metrics": True})
    sections.setdefault("runtime", {"engine": "fake", "restart_first_s": 0.01})
    settings = Settings.model_validate(sections)

    async def make(_: Report) -> Engine:
        return make_engine(script)

    services = build_services(settings, make, state_path=state)
    asgi = build_app(services)
    config = uvicorn.Config(
        asgi,
        interface="asgi3",
        port=0,
        log_config=None,
        access_log=False,
        http=protocol_class(settings.server, settings.server.max_connections),
        ws="none",
    )
    server = uvicorn.Server(config)
    started: list[asyncio.AbstractEventLoop] = []

    async def serve() -> None:
        started.append(asyncio.get_running_loop())
        await server.serve()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        _poll(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        with App(asgi, started[0], port) as app:
            if ready:
                _poll(lambda: app.get("/readyz").status_code == 200)
            yield app
    finally:
        server.should_exit = True
        thread.join(20)


def _poll(condition: Any) -> None:
    for _ in range(1000):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("not within 10 s")


def poll(condition: Any) -> None:
    """Wait, for ten seconds at most, until the condition holds."""
    _poll(condition)
