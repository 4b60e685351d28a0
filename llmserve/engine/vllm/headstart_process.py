"""The other side of ``headstart``: imports, then waits for work. Runs in a process of its own."""

# multiprocessing shows its parts for other ways to start a process, and the type stubs do not
# have them: hence the ignored types in this file.

from __future__ import annotations

import gc
import os
import socket
import sys
from contextlib import suppress
from importlib import import_module
from multiprocessing import resource_tracker, spawn
from pathlib import Path

from llmserve.engine.vllm.headstart import FILE, NUMBER, RUN, HeadStart

_PATIENCE_SECONDS = 600.0


def main(modules: list[str], folder: str, files: list[int]) -> None:
    """Import ``modules``, then be the process that the parent asks for. ``files``: the
    connection to it, the one that tells it of our end, and that of the resource tracker."""
    for file in files:
        # For this process only: a process that it starts must not keep them open.
        os.set_inheritable(file, False)
    resource_tracker._resource_tracker._fd = files[2]  # type: ignore[attr-defined]
    ahead = HeadStart(Path(folder))
    # Imports make a million objects and hardly any garbage; looking for it takes a fifth
    # of the time.
    gc.disable()
    imported = []
    for name in modules:
        # Of other settings or of another version of vLLM, perhaps: what is needed is imported
        # later on anyway, and what fails then is told.
        with suppress(Exception):
            imported.append(import_module(name))
    gc.enable()
    channel = socket.socket(fileno=files[0])
    _receive_files(channel)
    parent = os.dup(channel.fileno())
    ahead.forget_later()
    with ahead.serving(imported):
        sys.exit(spawn._main(channel.detach(), parent))


def _receive_files(channel: socket.socket) -> None:
    """Take files and answer with their numbers, until work follows. Ends the process when
    the parent does not want it."""
    channel.settimeout(_PATIENCE_SECONDS)
    try:
        while True:
            kind, received, _, _ = socket.recv_fds(channel, 1, 1)
            if kind != FILE:
                break
            os.set_inheritable(received[0], False)
            channel.sendall(NUMBER.pack(received[0]))
    except OSError:
        kind = b""
    if kind != RUN:
        os._exit(0)
    channel.settimeout(None)
