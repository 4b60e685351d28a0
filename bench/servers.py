"""The servers that are measured: started as a user starts them, in the same environment."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

from bench.cases import MODEL
from bench.client import BenchError
from bench.stats import ProcessStat, parse_stat

START_SECONDS = 300.0
STOP_SECONDS = 45.0
POLL_SECONDS = 0.1

ENGINE: dict[str, Any] = {
    # Where llmserve's defaults differ from vLLM's, vLLM gets llmserve's (a test compares).
    "scheduling_policy": "priority",
    "enable_prompt_tokens_details": True,
    "max_logprobs": 20,
    "use_tqdm_on_load": False,
    "structured_outputs_config": {"disable_any_whitespace": True, "backend": "xgrammar"},
    "tool_call_parser": "hermes",
    "enable_auto_tool_choice": True,
    "enforce_eager": True,
    # Equal by default; written down because the result depends on them.
    "enable_prefix_caching": True,
    "max_model_len": 4096,
    "max_num_seqs": 256,
}
"""Arguments of vLLM that both servers get."""

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
}


class Server:
    """One server in a process of its own. ``pid`` is the process that answers HTTP: the
    engine's processes are its children and do not count as front end."""

    def __init__(self, name: str, command: Sequence[str], ready_path: str, log: Path) -> None:
        self.name = name
        self.port = _free_port()
        self._ready_url = f"http://127.0.0.1:{self.port}{ready_path}"
        self._log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(  # noqa: S603
                [*command, "--port", str(self.port)],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | ENVIRONMENT | {"XDG_STATE_HOME": str(log.parent)},
                start_new_session=True,  # Ctrl-C is ours; we stop the servers in order
            )
        self.pid = self._process.pid

    def wait_ready(self) -> None:
        """Poll until the server is ready. Raises ``BenchError`` with the end of its log."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise BenchError(f"{self.name} ended ({self._process.returncode}): {self._tail()}")
            try:
                if httpx.get(self._ready_url, timeout=10).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(POLL_SECONDS)
        raise BenchError(f"{self.name} is not ready after {START_SECONDS:.0f} s: {self._tail()}")

    def cpu_seconds(self) -> float:
        """CPU time of the front end so far, user and system."""
        return _cpu_seconds(self._stat(self.pid))

    def tree_cpu_seconds(self) -> float:
        """The same, together with the engine's processes."""
        return sum(_cpu_seconds(self._stat(pid)) for pid in (self.pid, *self._children()))

    def resident_bytes(self) -> int:
        """Memory of the front end."""
        return self._stat(self.pid).resident_pages * os.sysconf("SC_PAGE_SIZE")

    def state(self) -> str:
        """Whether it runs, and the end of its log: for a message about a failure."""
        code = self._process.poll()
        return f"{self.name} {'runs' if code is None else f'ended ({code})'}: {self._tail()}"

    def stop(self) -> None:
        """Ask the server to end; kill what has not ended in time, by process id."""
        children = [psutil.Process(pid) for pid in self._children()]
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
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


def llmserve_command(engine: str, model: Path | None, arguments: Mapping[str, Any]) -> list[str]:
    """``llmserve serve`` with these engine arguments."""
    command = [sys.executable, "-m", "llmserve", "serve"]
    if model is not None:
        command.append(str(model))
    command += ["--engine", engine, "--served-model-name", MODEL, "--set", "logging.access=false"]
    if engine == "vllm":
        for name, value in arguments.items():
            command += ["--set", f"engine.{name}={json.dumps(value)}"]
    return command


def vllm_command(model: Path, arguments: Mapping[str, Any]) -> list[str]:
    """``vllm serve``, by its module: the console command of the CPU build does not start."""
    from llmserve.engine.vllm.args import to_argv

    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--served-model-name", MODEL, "--host", "127.0.0.1"]
    return [*command, "--disable-uvicorn-access-log", *to_argv(dict(arguments))]


@contextmanager
def running(
    engine: str, model: Path | None, extra: Mapping[str, Any], logs: Path
) -> Iterator[list[Server]]:
    """llmserve, and vLLM's own server unless the engine is the fake one; both ready.
    They are stopped in the end. A ``BenchError`` from inside learns what they logged."""
    arguments = ENGINE | dict(extra)
    with ExitStack() as stack:
        ours = llmserve_command(engine, model, arguments)
        servers = [Server("llmserve", ours, "/readyz", logs / "llmserve.log")]
        stack.callback(servers[0].stop)
        if model is not None:
            theirs = vllm_command(model, arguments)
            servers.append(Server("vllm", theirs, "/health", logs / "vllm.log"))
            stack.callback(servers[1].stop)
        for server in servers:
            server.wait_ready()
        try:
            yield servers
        except BenchError as error:
            raise BenchError("\n".join([str(error), *(s.state() for s in servers)])) from error


def _cpu_seconds(stat: ProcessStat) -> float:
    return (stat.user_ticks + stat.system_ticks) / os.sysconf("SC_CLK_TCK")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
