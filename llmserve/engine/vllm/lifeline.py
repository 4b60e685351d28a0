"""The processes of an engine end with the server, however the server ends.

A server that is killed with SIGKILL, by the kernel's out-of-memory killer for one, can
tell nobody. vLLM's engine core and its workers would live on and keep the GPU. Each of
them holds one end of a connection to the server; the kernel closes the other end when the
server is gone, and whoever holds this one then ends itself. (PR_SET_PDEATHSIG is no help:
it fires when the *thread* that started the child ends, and that thread ends right after
the start.)
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import threading
from pathlib import Path


class Anchor:
    """In the server: takes the connections of one engine's processes, and keeps them."""

    def __init__(self, folder: Path) -> None:
        self.address = str(folder / "life")
        self._held: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.address)
        self._listener.listen(64)
        self._thread = threading.Thread(target=self._take, name="lifeline", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Let go: what still runs ends itself. Idempotent."""
        with contextlib.suppress(OSError):
            # Wakes the thread, which ``close`` alone does not.
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        while self._held:
            self._held.pop().close()

    def _take(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._held.append(self._listener.accept()[0])


def hold(address: str) -> None:
    """In a process of the engine: end this process when the server ends."""
    line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        line.connect(address)
    except OSError:
        _end(address)  # The server ended while this process started.
    arguments = (line, address)
    threading.Thread(target=_wait, args=arguments, name="lifeline", daemon=True).start()


def _wait(line: socket.socket, address: str) -> None:
    with contextlib.suppress(OSError):
        line.recv(1)
    _end(address)


def _end(address: str) -> None:
    """A server that was killed could not remove its folder."""
    shutil.rmtree(Path(address).parent, ignore_errors=True)
    os.kill(os.getpid(), signal.SIGKILL)
