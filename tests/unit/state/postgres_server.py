"""A real PostgreSQL server from the Debian packages, for the length of a test run."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import psycopg

PASSWORD = "correct-horse"


@dataclass(frozen=True)
class Server:
    process: psutil.Process
    port: int

    def url(self, database: str, password: str = PASSWORD) -> str:
        return f"postgresql://llmserve:{password}@127.0.0.1:{self.port}/{database}"

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Nothing moves, though all connections stay."""
        processes = [self.process, *self.process.children(recursive=True)]
        for process in processes:
            process.suspend()
        try:
            yield
        finally:
            for process in processes:
                process.resume()

    def run(self, sql: str) -> list[Any]:
        """Run a statement as an administrator."""
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            cursor = connection.execute(sql.encode())
            return cursor.fetchall() if cursor.description else []


@dataclass(frozen=True)
class Database:
    """A fresh database."""

    server: Server
    name: str

    @property
    def url(self) -> str:
        return self.server.url(self.name)

    def run(self, sql: str) -> list[Any]:
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(sql.encode())
            return cursor.fetchall() if cursor.description else []

    def cut(self) -> None:
        """End all connections and let nobody in."""
        self.server.run(f"ALTER DATABASE {self.name} ALLOW_CONNECTIONS false")
        for database, process in self.server.run("SELECT datname, pid FROM pg_stat_activity"):
            if database == self.name:
                self.server.run(f"SELECT pg_terminate_backend({process})")

    def restore(self) -> None:
        self.server.run(f"ALTER DATABASE {self.name} ALLOW_CONNECTIONS true")


def binaries() -> Path | None:
    """Where ``initdb`` and ``postgres`` are."""
    found = shutil.which("initdb")
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    candidates = [Path(found).resolve().parent] if found else []
    return next((p for p in (*candidates, *places) if (p / "postgres").exists()), None)


@contextmanager
def running(bin_folder: Path) -> Iterator[Server]:
    """Make a cluster in a temporary folder, and run it. PostgreSQL refuses to be root."""
    folder = Path(tempfile.mkdtemp(prefix="llmserve-pg-"))
    user = _unprivileged()
    command_prefix: list[str] = []
    if user is not None:
        os.chown(folder, user.pw_uid, user.pw_gid)
        ids = [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        command_prefix = ["setpriv", *ids]
    data, secret = folder / "data", folder / "password"
    secret.write_text(PASSWORD)
    secret.chmod(0o644)
    with (folder / "log").open("wb") as log:
        try:
            subprocess.run(
                [
                    *(*command_prefix, bin_folder / "initdb", "-D", data, "--no-sync"),
                    *("-A", "scram-sha-256", "-U", "llmserve", f"--pwfile={secret}"),
                    *("-E", "UTF8", "--locale=C"),
                ],
                check=True,
                stdout=log,
                stderr=log,
                cwd=folder,
            )
            port = _free_port()
            options = ("fsync=off", "full_page_writes=off", "max_connections=60")
            server = subprocess.Popen(
                [
                    *(*command_prefix, bin_folder / "postgres", "-D", data, "-k", folder),
                    *("-h", "127.0.0.1", "-p", str(port)),
                    *(word for option in options for word in ("-c", option)),
                ],
                stdout=log,
                stderr=log,
                cwd=folder,
            )
            try:
                yield _reachable(Server(psutil.Process(server.pid), port), server, folder / "log")
            finally:
                server.send_signal(signal.SIGQUIT)
                server.wait(30)
        finally:
            shutil.rmtree(folder)


def _reachable(server: Server, process: subprocess.Popen[bytes], log: Path) -> Server:
    until = time.monotonic() + 30
    while True:
        try:
            server.run("SELECT 1")
        except psycopg.OperationalError:
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(log.read_text()) from None
            time.sleep(0.05)
        else:
            return server


def _unprivileged() -> pwd.struct_passwd | None:
    """Another user to run as; ``None`` when we are not root ourselves."""
    if os.getuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise RuntimeError("there is no user to run PostgreSQL as")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port
