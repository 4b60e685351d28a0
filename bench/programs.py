"""A program under measurement: its environment, CPU time, memory and end."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from bench.client import BenchError
from bench.stats import ProcessStat, parse_stat

STOP_SECONDS = 45.0
QUIET_WINDOW_SECONDS = 0.2
QUIET_CPU_SECONDS = 0.011  # one clock tick, which is all that can be seen
QUIET_DEADLINE_SECONDS = 20.0

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
}


class Program:
    """A process of its own, with its children. ``began`` is when it was started."""

    def __init__(
        self, name: str, command: Sequence[str], log: Path, *, pipes: bool = False
    ) -> None:
        self.name = name
        self._log = log
        with log.open("wb") as output:
            self.began = time.perf_counter()
            self.process = subprocess.Popen(  # noqa: S603
                command,
                stdin=subprocess.PIPE if pipes else subprocess.DEVNULL,
                stdout=subprocess.PIPE if pipes else output,
                stderr=output,
                env=os.environ | ENVIRONMENT | {"XDG_STATE_HOME": str(log.parent)},
                start_new_session=True,  # Ctrl-C is ours; we stop the programs in order
            )
        self.pid = self.process.pid

    def check_running(self) -> None:
        """Raises ``BenchError`` with the end of its log when it has ended."""
        if self.process.poll() is not None:
            raise BenchError(self.state())

    def cpu_seconds(self) -> float:
        """CPU time of the process itself so far, user and system."""
        return _cpu_seconds(self._stat(self.pid))

    def tree_cpu_seconds(self) -> float:
        """The same, together with its children."""
        return sum(_cpu_seconds(self._stat(pid)) for pid in (self.pid, *self._children()))

    def resident_bytes(self) -> int:
        """Memory of the process itself."""
        return self._stat(self.pid).resident_pages * os.sysconf("SC_PAGE_SIZE")

    def proportional_bytes(self) -> int:
        """The same, with what several processes share divided among them."""
        text = Path(f"/proc/{self.pid}/smaps_rollup").read_text(encoding="utf-8")
        return 1024 * int(text.partition("\nPss:")[2].split()[0])

    def state(self) -> str:
        """Whether it runs, and the end of its log: for a message about a failure."""
        code = self.process.poll()
        return f"{self.name} {'runs' if code is None else f'ended ({code})'}: {self._tail()}"

    def stop(self) -> None:
        """Ask it to end; kill what has not ended in time, by process id."""
        children = [psutil.Process(pid) for pid in self._children()]
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):  # it is gone already
                    pipe.close()
        _, left = psutil.wait_procs(children, timeout=5)
        for child in left:
            child.kill()

    def _stat(self, pid: int) -> ProcessStat:
        try:
            return parse_stat(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8"))
        except OSError as error:
            raise BenchError(f"{self.name} has lost a process: {self._tail()}") from error

    def _children(self) -> list[int]:
        try:
            return [child.pid for child in psutil.Process(self.pid).children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _tail(self) -> str:
        return "\n" + self._log.read_text(encoding="utf-8", errors="replace")[-3000:]


def tree_cpu_seconds(programs: Sequence[Program]) -> float:
    """CPU time of several programs with their children."""
    return sum(program.tree_cpu_seconds() for program in programs)


async def settle(programs: Sequence[Program]) -> None:
    """Wait until none of them uses the CPU. vLLM's worker spins for a second after its last
    step, pinned to the core that another server's worker needs."""
    deadline = time.monotonic() + QUIET_DEADLINE_SECONDS
    while time.monotonic() < deadline:
        before = tree_cpu_seconds(programs)
        await asyncio.sleep(QUIET_WINDOW_SECONDS)
        if tree_cpu_seconds(programs) - before <= QUIET_CPU_SECONDS:
            return
    raise BenchError(f"the servers are still busy {QUIET_DEADLINE_SECONDS:.0f} s later")


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _cpu_seconds(stat: ProcessStat) -> float:
    return (stat.user_ticks + stat.system_ticks) / os.sysconf("SC_CLK_TCK")
