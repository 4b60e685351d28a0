"""``llmserve serve``: opens the port, then imports the rest.

Nothing heavy is imported here: liveness is answered (``early``) while FastAPI and the
rest of the server are still being loaded.
"""

from __future__ import annotations

import logging
import socket
import time
from pathlib import Path

from llmserve.early import answering
from llmserve.observability.logging import configure_logging
from llmserve.settings import Settings

log = logging.getLogger(__name__)

_BACKLOG = 2048


def run(settings: Settings, state_path: Path) -> int:
    """Serve until told to stop; keys and usage are kept in ``state_path`` when the settings
    name no other place. Returns the exit code of the process: 0 after a shutdown
    in good order, 1 when the engine can never work or the port is taken, 2 for wrong
    settings."""
    began = time.monotonic()
    configure_logging(settings.logging)
    try:
        listener = _listen(settings.server.host, settings.server.port)
    except OSError as error:
        where = f"{settings.server.host}:{settings.server.port}"
        log.error("cannot listen on %s: %s. Choose another --port.", where, error.strerror)
        return 1
    with answering(listener):
        from llmserve.process import Process
    return Process(settings, listener, state_path, began).run()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener
