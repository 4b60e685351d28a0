"""The processes of an engine are started before vLLM asks for them.

vLLM starts them one after the other: the server imports vLLM and starts the engine core,
which imports it again and starts the workers, which import it again. Here each of them is
an interpreter that starts at once, imports at the same time as the others, and then waits
for what ``multiprocessing`` would have sent it. It is a fresh process as with the method
"spawn", never a fork: threads and CUDA in the parent do no harm, and libraries that read
the environment when they are loaded (OpenMP, tcmalloc) find theirs.

That environment is known only after vLLM has made its configuration, so the one of the
last start with the same settings is taken, or else of the last one with any: it hardly
depends on them. Was the guess wrong, then the process is started anew with the right one,
at the time when vLLM would have done it.
"""

# multiprocessing shows its parts for other ways to start a process, and the type stubs do not
# have them: hence the ignored types in this file.

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import shutil
import signal
import socket
import struct
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import context, popen_spawn_posix, reduction, resource_tracker, spawn, util
from pathlib import Path
from types import ModuleType
from typing import Any

log = logging.getLogger(__name__)

FILE, RUN = b"f", b"r"
NUMBER = struct.Struct("i")

_MAKER = "get_mp_context"
"""What vLLM's modules call when they start processes (vllm.utils.system_utils)."""

_MOST_MISSES = 2
_MOST_FOLDERS = 32
_UNASKED_SECONDS = 60.0
_PROGRAM = (
    "import json, sys; given = json.loads(sys.argv[1]); sys.path[:] = given.pop('path'); "
    "from llmserve.engine.vllm.headstart_process import main; main(**given)"
)


def memory(starts: Path, settings: str) -> Path:
    """The folder below ``starts`` that remembers starts with these settings. It begins with
    what is known of the last start with others."""
    folder = starts / hashlib.sha256(settings.encode()).hexdigest()[:16]
    # What cannot be read or written is no reason not to start.
    with suppress(OSError):
        if folder.exists():
            os.utime(folder)
            return folder
        others = sorted(starts.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
        for old in others[_MOST_FOLDERS - 1 :]:
            shutil.rmtree(old, ignore_errors=True)
        any(_copy(other, folder) for other in others[: _MOST_FOLDERS - 1])
    return folder


def _copy(other: Path, folder: Path) -> bool:
    """Take over the guesses that were right; whether there was one."""
    right = False
    for path in sorted(other.rglob("*.json")):
        with suppress(OSError, ValueError, KeyError, TypeError):
            text = path.read_text()
            if json.loads(text)["misses"] == 0:
                copy = folder / path.relative_to(other)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_text(text)
                right = True
    return right


class Early:
    """A process that was started ahead and waits for its work."""

    def __init__(self, modules: Sequence[str], folder: Path, environment: Mapping[str, str]):
        self.environment = dict(environment)
        self.modules = list(modules)
        self._channel, theirs = socket.socketpair()
        self.sentinel, alive = os.pipe()
        files = (theirs.fileno(), alive, resource_tracker.getfd())
        given = {"path": sys.path, "modules": modules, "folder": str(folder), "files": files}
        # -P: what happens to lie in the current folder is not imported.
        flags = [*util._args_from_interpreter_flags(), "-P"]  # type: ignore[attr-defined]
        command = [sys.executable, *flags, "-c", _PROGRAM, json.dumps(given)]
        # A file that is duplicated onto itself stays open in the new process.
        kept = [(os.POSIX_SPAWN_DUP2, file, file) for file in files]
        try:
            self.pid = os.posix_spawn(command[0], command, self.environment, file_actions=kept)
        finally:
            theirs.close()
            os.close(alive)

    def give(self, file: int) -> int:
        """Hand over an open file; returns its number there. Waits for the imports."""
        socket.send_fds(self._channel, [FILE], [file])
        answer = self._channel.recv(NUMBER.size, socket.MSG_WAITALL)
        if len(answer) < NUMBER.size:
            raise ConnectionError("a process that was started ahead has ended")
        return int(NUMBER.unpack(answer)[0])

    def run(self, work: bytes) -> int:
        """Let it run ``work``, as ``multiprocessing`` writes it. Returns an open file; when
        that is closed, the process knows that its parent is gone."""
        self._channel.sendall(RUN + work)
        return self._channel.detach()

    def discard(self) -> None:
        """End it; only while it has no work."""
        self._channel.close()
        os.close(self.sentinel)
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


class HeadStart:
    """The processes that one parent is going to start. ``folder`` remembers them from one
    start to the next (``memory``)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._before = dict(os.environ)
        self._executable = spawn.get_executable()
        self._waiting: dict[str, Early] = {}
        self._misses: dict[str, int] = {}
        for path in sorted(folder.glob("*.json")):
            with suppress(OSError, ValueError, KeyError, TypeError):
                self._start(path.stem, json.loads(path.read_text()))

    def _start(self, name: str, last: dict[str, Any]) -> None:
        self._misses[name] = last["misses"]
        if last["misses"] < _MOST_MISSES:
            environment = {**self._before, **last["environment"]}
            self._waiting[name] = Early(last["modules"], self._folder / name, environment)

    def close(self) -> None:
        """End the processes that nobody has asked for."""
        while self._waiting:
            self._waiting.popitem()[1].discard()

    def forget_later(self) -> None:
        """End what nobody has asked for when the others have their work for long, and do not
        start it again: other settings had more workers."""
        timer = threading.Timer(_UNASKED_SECONDS, self._forget)
        timer.daemon = True
        timer.start()

    def _forget(self) -> None:
        while self._waiting:
            name, early = self._waiting.popitem()
            early.discard()
            with suppress(OSError):
                (self._folder / f"{name}.json").unlink()

    @contextmanager
    def serving(self, modules: Sequence[ModuleType]) -> Iterator[None]:
        """Let these modules of vLLM start their processes from here. vLLM has no setting for
        that; one function is replaced, for the time of this block, where it is there."""
        found = [(module, vars(module)[_MAKER]) for module in modules if _MAKER in vars(module)]
        for module, ask in found:
            setattr(module, _MAKER, lambda ask=ask: self._context(ask()))
        try:
            yield
        finally:
            for module, ask in found:
                setattr(module, _MAKER, ask)

    def _context(self, wanted: context.BaseContext) -> context.BaseContext:
        # vLLM has its reasons when it wants another method.
        return _Context(self) if wanted.get_start_method() == "spawn" else wanted

    def popen(self, process: context.SpawnProcess) -> popen_spawn_posix.Popen:
        """Start ``process``, on one that waits if possible."""
        # Another executable wraps the interpreter: vLLM's way to bind it to a NUMA node.
        if spawn.get_executable() == self._executable:
            early = self._take(process)
            try:
                return _Popen(process, early)
            except OSError as error:
                log.warning("starting %s the usual way: %s", process.name, error)
                early.discard()
        return popen_spawn_posix.Popen(process)

    def _take(self, process: context.SpawnProcess) -> Early:
        early = self._waiting.pop(process.name, None)
        environment = dict(os.environ)
        fits = early is not None and early.environment == environment
        if early is not None and fits:
            # Of other settings, perhaps, with another executor: right from the next start on.
            if self._misses[process.name] or early.modules != _modules(process):
                self._remember(process, environment, misses=0)
            return early
        misses = self._misses.get(process.name, -1) + 1
        self._remember(process, environment, misses=misses)
        if early is not None:
            early.discard()
        return Early(_modules(process), self._folder / process.name, environment)

    def _remember(
        self, process: context.SpawnProcess, environment: dict[str, str], *, misses: int
    ) -> None:
        changed = {
            name: value for name, value in environment.items() if self._before.get(name) != value
        }
        last = {"modules": _modules(process), "environment": changed, "misses": misses}
        # A start is not to fail because nothing can be written.
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / f"{process.name}.json"
            written = path.with_suffix(f".{os.getpid()}")
            written.write_text(json.dumps(last))
            written.replace(path)


class _Context(context.SpawnContext):
    """The context of the method "spawn", whose processes start from a head start."""

    def __init__(self, ahead: HeadStart) -> None:
        super().__init__()
        self._ahead = ahead

    def Process(self, *args: Any, **options: Any) -> context.SpawnProcess:  # type: ignore[override]  # noqa: N802
        process = context.SpawnProcess(*args, **options)
        # On the object instead of in a subclass: its class is what the child has to know.
        process._Popen = self._popen  # type: ignore[method-assign, assignment]
        return process

    def _popen(self, process: context.SpawnProcess) -> popen_spawn_posix.Popen:
        del process._Popen
        return self._ahead.popen(process)


class _Popen(popen_spawn_posix.Popen):
    """What ``multiprocessing`` holds of a started process; as its base class, but sends
    files and work to a process that runs already."""

    def __init__(self, process: context.SpawnProcess, early: Early) -> None:
        self._early = early
        super().__init__(process)

    def duplicate_for_child(self, file: int) -> int:
        return self._early.give(file)

    def _launch(self, process: context.SpawnProcess) -> None:
        work = io.BytesIO()
        context.set_spawning_popen(self)
        try:
            reduction.dump(spawn.get_preparation_data(process.name), work)
            reduction.dump(process, work)
        finally:
            context.set_spawning_popen(None)
        self.pid, self.sentinel = self._early.pid, self._early.sentinel
        kept = self._early.run(work.getvalue())
        self.finalizer = util.Finalize(self, util.close_fds, (kept, self.sentinel))  # type: ignore[attr-defined]


def _modules(process: context.SpawnProcess) -> list[str]:
    """What such a process imports before it does anything."""
    target, options = process._target, process._kwargs  # type: ignore[attr-defined]
    modules = [target.__module__]
    if "executor_class" in options:
        modules.append(options["executor_class"].__module__)
    return modules
