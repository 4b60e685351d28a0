"""Fixtures for the tests of the command line."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from cli_support import Run, Stub, clean_environment


@pytest.fixture
def llmserve() -> Run:
    """Run ``llmserve ARGS…`` the way a user does."""

    def run(*args: str, stdin: str | bytes = "", **environ: str) -> Any:
        done = subprocess.run(
            [sys.executable, "-m", "llmserve", *args],
            input=stdin if isinstance(stdin, bytes) else stdin.encode(),
            capture_output=True,
            env=clean_environment(**environ),
            timeout=60,
            check=False,
        )
        return subprocess.CompletedProcess(
            done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
        )

    return run


@pytest.fixture
def stub() -> Iterator[Stub]:
    listening = socket.create_server(("127.0.0.1", 0))
    server = Stub(f"http://127.0.0.1:{listening.getsockname()[1]}")
    config = uvicorn.Config(server, lifespan="off", ws="none", log_config=None, log_level=100)
    host = uvicorn.Server(config)
    thread = threading.Thread(target=host.run, args=([listening],))
    thread.start()
    yield server
    host.should_exit = True
    thread.join()
    listening.close()
