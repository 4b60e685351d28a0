"""vLLM's log, brought home from all of its processes.

vLLM has no call for "how far is the start": its processes only write log lines. They all
get a logging configuration whose handler sends each record here over a local datagram
socket. Records that matter go on to our own log, in our own format; some of them tell
which stage of the start has been reached.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmserve.engine.grammars import GrammarRefused
from llmserve.engine.vllm.lifeline import Anchor, hold
from llmserve.errors import LlmserveError
from llmserve.types import Stage

log = logging.getLogger("llmserve.vllm")

_MAX_DATAGRAM = 60_000
_STOP = b"stop"

# Beginnings of vLLM's log messages (0.32: v1/worker, compilation, v1/engine/core.py), a
# "[backbone] " before them aside.
_PREFIX = re.compile(r"^\[\w+\] ")
_STAGES: tuple[tuple[str, Stage], ...] = (
    ("Starting to load model", Stage.LOADING),
    ("Warming up model for the compilation", Stage.COMPILING),
    ("Starting torch.compile", Stage.COMPILING),
    ("Compile and warming up model", Stage.COMPILING),
    ("Dynamo bytecode transform time", Stage.COMPILING),
    ("Warming up done", Stage.WARMING),
    ("Graph capturing finished", Stage.WARMING),
    ("init engine", Stage.WARMING),
)


class RelayHandler(logging.Handler):
    """In a process of vLLM: sends records to the relay, and never waits or fails.

    It is also what ties such a process to the server (see ``lifeline``): it is the one
    thing of ours that vLLM loads in all of them. ``server`` is the process id of the
    server, which loads it as well.
    """

    def __init__(self, address: str, lifeline: str, server: int) -> None:
        super().__init__()
        if os.getpid() != server:
            hold(lifeline)
        self._address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record; without a relay at the other end it is dropped."""
        if record.exc_info and _is_answered(record, record.exc_info[1]):
            return
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + logging.Formatter().formatException(record.exc_info)
        message = {"level": record.levelno, "process": record.processName, "text": text[:20_000]}
        with contextlib.suppress(OSError):
            self._socket.sendto(json.dumps(message).encode()[:_MAX_DATAGRAM], self._address)


def _is_answered(record: logging.LogRecord, error: BaseException | None) -> bool:
    """Whether the reply tells the client of it. vLLM logs a traceback of whatever ends a
    stream, also when it is the client's mistake, and of every tool call that was cut."""
    if isinstance(error, LlmserveError | GrammarRefused):
        return True
    if record.name.startswith("vllm.tool_parsers") and isinstance(error, ValueError):
        return True
    return any(base.__name__ == "VLLMClientError" for base in type(error).__mro__)


class Relay:
    """In the server: receives the records of one engine until it is closed."""

    def __init__(self, level: int, on_stage: Callable[[Stage], None]) -> None:
        self._level = level
        self._on_stage = on_stage
        self._folder = Path(tempfile.mkdtemp(prefix="llmserve-"))
        self._address = str(self._folder / "log")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self._address)
        self._anchor = Anchor(self._folder)
        self._thread = threading.Thread(target=self._receive, daemon=True)
        self._thread.start()

    def write_config(self) -> Path:
        """The file for ``VLLM_LOGGING_CONFIG_PATH``."""
        config = {
            "version": 1,
            "disable_existing_loggers": False,
            "handlers": {
                "relay": {
                    "class": f"{__name__}.{RelayHandler.__name__}",
                    "level": "INFO",
                    "address": self._address,
                    "lifeline": self._anchor.address,
                    "server": os.getpid(),
                }
            },
            "loggers": {"vllm": {"handlers": ["relay"], "level": "INFO", "propagate": False}},
        }
        path = self._folder / "logging.json"
        path.write_text(json.dumps(config), encoding="utf-8")
        return path

    def close(self) -> None:
        """Stop receiving and remove the socket; what is left of the engine's processes
        ends. Idempotent."""
        if self._socket.fileno() < 0:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as waker:
            waker.sendto(_STOP, self._address)
        self._thread.join()
        self._socket.close()
        self._anchor.close()  # Last: who ends by it removes the folder.
        shutil.rmtree(self._folder, ignore_errors=True)

    def _receive(self) -> None:
        while (datagram := self._socket.recv(_MAX_DATAGRAM)) != _STOP:
            with contextlib.suppress(ValueError):
                self._handle(json.loads(datagram))

    def _handle(self, message: dict[str, Any]) -> None:
        text = str(message["text"])
        if message["level"] >= self._level:
            log.log(message["level"], "%s: %s", message["process"], text)
        for beginning, stage in _STAGES:
            if _PREFIX.sub("", text).startswith(beginning):
                self._on_stage(stage)
