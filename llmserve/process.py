"""The serving process: runs the application on an open socket, and ends it in good order.

The first SIGTERM or SIGINT drains: readiness goes off; after ``server.drain_grace_s``, in
which load balancers notice, new work is refused; running
requests finish within ``server.drain_timeout_s`` and what is left then ends with an error
event. A second signal ends everything at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import uvicorn
from prometheus_client import disable_created_metrics
from sse_starlette.sse import AppStatus

from llmserve.announce import announce
from llmserve.app import build_app, build_services
from llmserve.engine.supervisor import Status
from llmserve.engine.timeline import in_words
from llmserve.errors import ConfigError, Draining, LlmserveError
from llmserve.http.connection import protocol_class
from llmserve.services import Services
from llmserve.settings import Settings, is_loopback
from llmserve.types import Stage

log = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_FLUSH_SECONDS = 2.0
_CLOSE_SECONDS = 5
_POLL_SECONDS = 0.02
_COLLECT_AFTER = 20_000
_OTHER_FILES = 256
"""Open files kept for all that is no connection of a client."""


class Process:
    """One application around one listening socket."""

    def __init__(
        self, settings: Settings, listener: socket.socket, state_path: Path, began: float
    ) -> None:
        self._began = began
        self._settings = settings
        self._state_path = state_path
        self._listener = listener
        self._services: Services | None = None
        self._drain: asyncio.Task[None] | None = None
        self._announced = False

    def run(self) -> int:
        """Serve until told to stop. Returns the exit code, as ``server.run``."""
        try:
            self._services = build_services(
                self._settings, on_change=self._on_change, state_path=self._state_path
            )
            self._services.supervisor.timeline.begin_at(self._began)
            check_exposure(self._settings, keys=self._services.authenticator.required)
        except LlmserveError as error:
            log.error("%s", error.message)
            return 2 if isinstance(error, ConfigError) else 1
        # Creation times double the size of every scrape and no dashboard reads them.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        # We end streams ourselves; sse-starlette would cut them when uvicorn stops.
        AppStatus.disable_automatic_graceful_drain()  # type: ignore[no-untyped-call]
        server = self._settings.server
        config = uvicorn.Config(
            app=build_app(self._services),
            http=protocol_class(server, connections_within(server.max_connections)),
            interface="asgi3",
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=_CLOSE_SECONDS,
        )
        self._server = _Server(config)
        runner = asyncio.Runner(loop_factory=config.get_loop_factory())
        with runner:
            runner.run(self._serve())
        failure = self._services.supervisor.error
        if failure is None:
            return 0
        log.error("%s", failure.message)
        return 2 if isinstance(failure, ConfigError) else 1

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._on_signal, number)
        host, port = self._listener.getsockname()[:2]
        log.info("listening on http://%s:%d", host, port)
        await self._server.serve(sockets=[self._listener])

    def _on_change(self, status: Status) -> None:
        if status.stage is Stage.READY and self._services is not None:
            self._settle()
            if not self._announced:
                self._announced = True
                port = self._listener.getsockname()[1]
                name = self._services.gateway.router.names[0]
                needed = self._services.authenticator.required
                announce(self._settings, name, port, keys=needed)
            return
        log.info("engine: %s%s", status.stage.value, f" ({status.reason})" if status.reason else "")
        if status.stage is Stage.FAILED:
            self._server.should_exit = True

    def _settle(self) -> None:
        assert self._services is not None
        spent = self._services.supervisor.timeline.seconds(time.monotonic())
        log.info("ready after %s", in_words(spent))
        # What a start leaves behind (modules, configuration, tokenizer) stays for as long as
        # the engine does. Searched again by every full collection, it would stop all streams
        # for as long (half a second, measured). What an engine before this one has left is
        # collected first.
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        # What a request makes goes as it ends, without the collector: looking for garbage
        # every 700 objects was a twentieth of what a request costs.
        gc.set_threshold(_COLLECT_AFTER)
        give_back_memory()
        loop = type(asyncio.get_running_loop()).__module__
        log.debug("event loop %s; %d objects frozen", loop, gc.get_freeze_count())

    def _on_signal(self, number: signal.Signals) -> None:
        if self._drain is None:
            # Whoever presses Ctrl-C is no load balancer that has to notice first.
            grace = self._settings.server.drain_grace_s if number == signal.SIGTERM else 0
            self._drain = asyncio.get_running_loop().create_task(self._drain_and_exit(grace))
            return
        log.warning("second signal: ending at once")
        kill_children()
        os._exit(1)

    async def _drain_and_exit(self, grace: float) -> None:
        assert self._services is not None
        gateway, limit = self._services.gateway, self._settings.server.drain_timeout_s
        gateway.admission.leaving = True
        self._services.supervisor.stopping = True
        if grace:
            log.info("not ready any more; new requests are taken for another %g s", grace)
            await asyncio.sleep(grace)
        gateway.admission.draining = True
        log.info("draining: %d requests in flight", gateway.admission.in_flight)
        if not await self._idle_within(limit):
            gateway.stop_all(
                lambda: Draining("The server is shutting down and ended this request.")
            )
            await self._idle_within(_FLUSH_SECONDS)
        self._server.should_exit = True

    async def _idle_within(self, seconds: float) -> bool:
        assert self._services is not None
        admission = self._services.gateway.admission
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while admission.in_flight:  # noqa: ASYNC110  # rare, and short
                    await asyncio.sleep(_POLL_SECONDS)
        return not admission.in_flight


def connections_within(wanted: int) -> int:
    """As many of ``wanted`` connections as the process may have open files, after raising
    that limit as far as the system lets it: without files left, nobody can even be told."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, hard = (sys.maxsize if n == resource.RLIM_INFINITY else n for n in limits)
    if soft < wanted + _OTHER_FILES:
        soft = min(hard, wanted + _OTHER_FILES)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, limits[1]))
    most = max(soft - _OTHER_FILES, soft // 2)
    if most < wanted:
        log.warning("only %d connections: the limit of open files is %d", most, soft)
    return min(wanted, most)


def check_exposure(settings: Settings, *, keys: bool) -> None:
    """Raises ``ConfigError`` when the server would be open to a network without keys."""
    host = settings.server.host
    if keys or settings.auth.allow_anonymous_network or is_loopback(host):
        return
    raise ConfigError(
        f"server.host is {host} and there is no API key: everybody who reaches this machine "
        "could use the model. Make a key with 'llmserve keys create NAME', or set "
        "auth.allow_anonymous_network to true."
    )


def give_back_memory() -> None:
    """Return freed memory to the system: the C library keeps what a start has used and
    freed, some 40 MB. Only glibc has this call."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: they would close the port before draining."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def kill_children() -> None:
    """End every process that this one has started, and theirs."""
    import psutil

    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
