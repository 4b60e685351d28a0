"""The engine seam on vLLM. This module itself does not import vLLM: ``start`` does, in a
thread, so that the server answers while the import runs."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import json
import logging
import signal
from argparse import Namespace
from collections.abc import AsyncGenerator, Mapping
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from llmserve.engine.protocol import Context, Event, Json, PushText, Report
from llmserve.engine.vllm.args import build_namespace
from llmserve.engine.vllm.environment import prepare_environment
from llmserve.engine.vllm.headstart import HeadStart, memory
from llmserve.engine.vllm.relay import Relay
from llmserve.errors import EngineDied, NotReady, SetupError
from llmserve.provision.cache import cache_dir
from llmserve.settings import Settings
from llmserve.types import Chunk, GenerateRequest, Load, Meter, ModelInfo, Operation, Stage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmserve.engine.vllm.core import Core

log = logging.getLogger(__name__)

_ABANDON_SECONDS = 0.1


class VllmEngine:
    """One model in one vLLM ``AsyncLLM`` (continuous batching, tensor and pipeline
    parallelism are its business)."""

    def __init__(self, settings: Settings, model: str, defaults: Mapping[str, Any]) -> None:
        self._settings = settings
        self._model = model
        self._defaults = defaults
        self._core: Core | None = None
        self._llm: Any = None
        self._creation: asyncio.Future[Any] | None = None
        self._others: set[psutil.Process] = set()
        self._ahead: HeadStart | None = None
        self._relay: Relay | None = None
        self._closed = False
        self._starting = asyncio.Lock()

    @property
    def info(self) -> ModelInfo:
        return self._running().info

    async def start(self, report: Report) -> None:
        async with self._starting:
            if self._core is not None:
                return
            report(Stage.IMPORTING, None)
            self._relay = Relay(_vllm_level(self._settings), lambda stage: report(stage, None))
            self._others = _children()
            namespace = await asyncio.to_thread(self._prepare, self._relay.write_config())
            report(Stage.LOADING, None)
            core = importlib.import_module("llmserve.engine.vllm.core")
            self._creation = asyncio.ensure_future(asyncio.to_thread(self._create, namespace))
            self._llm, probe = await asyncio.shield(self._creation)
            report(Stage.WARMING, None)
            seconds = self._settings.limits.grammar_timeout_s
            self._core = await core.build_core(self._llm, probe, namespace, grammar_seconds=seconds)

    def _prepare(self, logging_config: Path) -> Namespace:
        prepare_environment(self._settings, self._model, logging_config)
        with _terminal_signals_blocked():
            self._ahead = HeadStart(self._start_folder())
        with _without_collections():
            importlib.import_module("llmserve.engine.vllm.core")
        from vllm import envs
        from vllm.platforms import current_platform

        envs.disable_envs_cache()  # An engine before this one had another environment.
        if self._settings.runtime.device == "cpu" and not current_platform.is_cpu():
            raise SetupError(
                "runtime.device is cpu, but the installed vLLM is built for GPUs. Install the "
                "CPU engine: python tools/setup_env.py --engine cpu."
            )
        on_cpu = current_platform.is_cpu()
        return build_namespace(self._settings, self._model, self._defaults, on_cpu=on_cpu)

    def _create(self, namespace: Namespace) -> Any:
        from vllm.v1.engine import utils

        from llmserve.engine.vllm.core import create_llm

        assert self._ahead is not None
        with (
            contextlib.closing(self._ahead),
            self._ahead.serving([utils]),
            _terminal_signals_blocked(),
        ):
            return create_llm(namespace)

    def _start_folder(self) -> Path:
        """Where the head start remembers an engine with these settings."""
        told = [self._model, self._settings.engine, self._defaults, self._settings.runtime.device]
        return memory(cache_dir() / "starts", json.dumps(told, default=str, sort_keys=True))

    def generate(
        self, request: GenerateRequest, meter: Meter, push: PushText | None = None
    ) -> AsyncGenerator[Chunk, None]:
        core = self._running()
        from llmserve.engine.vllm.native import generate

        return generate(core, request, meter, push)

    async def openai(
        self, operation: Operation, body: Json, context: Context, meter: Meter
    ) -> Json | AsyncGenerator[Event, None]:
        core = self._running()
        from llmserve.engine.vllm.face import answer

        return await answer(core, operation, body, context, meter)

    def load(self) -> Load:
        return self._core.load() if self._core else Load(0, 0, 0.0)

    def steps(self) -> int:
        return self._core.steps() if self._core else 0

    def alive(self) -> bool:
        return self._core is not None and not self._closed and not self._core.llm.errored

    async def aclose(self) -> None:
        if self._core is not None:
            self._core.close()
        llm, self._llm, self._core, self._closed = self._llm, None, None, True
        if llm is None and self._creation is not None:
            llm = await self._abandon(self._creation)
        self._creation = None
        if llm is not None:
            _stop_reading(llm)
            # Waits for the engine's processes to end: seconds, in the worst case.
            await asyncio.to_thread(llm.shutdown)
        if self._ahead is not None:
            await asyncio.to_thread(self._ahead.close)
        if self._relay is not None:
            await asyncio.to_thread(self._relay.close)

    async def _abandon(self, creation: asyncio.Future[Any]) -> Any:
        """End a start half-way. vLLM cannot be told to stop loading: its processes are
        killed until its constructor gives up. Returns the engine if it was quicker."""
        while not creation.done():
            for process in _children() - self._others:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            await asyncio.wait({creation}, timeout=_ABANDON_SECONDS)
        if creation.cancelled() or creation.exception() is not None:
            return None
        return creation.result()[0]

    def _running(self) -> Core:
        if self._closed:
            raise EngineDied("The engine is closed.")
        if self._core is None:
            raise NotReady("The engine has not been started.")
        return self._core


def _stop_reading(llm: Any) -> None:
    """Before ``llm`` is shut down: its reader would take the end of the engine core for a
    crash, and log it. What still waits for tokens is told here instead."""
    from vllm.v1.engine.exceptions import EngineDeadError

    if llm.output_handler is None or llm.output_handler.done():
        return
    llm.output_handler.cancel()
    for state in list(llm.output_processor.request_states.values()):
        # A request that has ended already has no queue any more.
        if state.queue is not None:
            state.queue.put(EngineDeadError())


def _children() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def _vllm_level(settings: Settings) -> int:
    """vLLM is talkative: short of errors, its log is of use to whoever debugs only."""
    return logging.INFO if settings.logging.level == "debug" else logging.ERROR


@contextlib.contextmanager
def _without_collections() -> Iterator[None]:
    """Imports make a million objects and hardly any garbage; looking for it takes a fifth
    of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextlib.contextmanager
def _terminal_signals_blocked() -> Iterator[None]:
    """Children started here never see Ctrl-C.

    A terminal sends SIGINT to the whole process group; the engine core would stop at
    once and cut the streams that the server wants to drain. A blocked signal is inherited
    by child processes, and this thread is not the one that handles our own signals.
    """
    # It would be started by the first child, and unblocks the signal when it is.
    resource_tracker.ensure_running()
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)
