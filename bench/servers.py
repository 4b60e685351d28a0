"""The servers that are measured: started as a user starts them, in the same environment."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from bench.cases import MODEL
from bench.client import BenchError
from bench.programs import Program, free_port
from bench.values import OURS, THEIRS

START_SECONDS = 300.0
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

PACED_ENGINE = {"distributed_executor_backend": "bench.paced_engine.PacedExecutor"}
"""Those for an engine whose model costs nothing."""


def fitting() -> dict[str, Any]:
    """What llmserve chooses by the machine: vLLM's server gets it as well. A process of its
    own asks, so that the client does not have vLLM in it."""
    asks = "from llmserve.engine.vllm.dtypes import halves_are_slow as slow; print(slow())"
    answer = subprocess.run([sys.executable, "-c", asks], capture_output=True, text=True)  # noqa: S603
    if answer.returncode:
        raise BenchError(f"vLLM cannot be imported: {answer.stderr.strip()[-500:]}")
    return {"dtype": "float32"} if answer.stdout.split()[-1] == "True" else {}


class Server(Program):
    """A server: what answers HTTP on ``port`` is the front end, the engine's processes are
    its children."""

    def __init__(self, name: str, command: Sequence[str], ready_path: str, log: Path) -> None:
        self.port = free_port()
        self.ready_path = ready_path
        super().__init__(name, [*command, "--port", str(self.port)], log)

    def wait_ready(self) -> None:
        """Poll until the server is ready. Raises ``BenchError`` with the end of its log."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            self.check_running()
            try:
                url = f"http://127.0.0.1:{self.port}{self.ready_path}"
                if httpx.get(url, timeout=10).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(POLL_SECONDS)
        raise BenchError(f"not ready after {START_SECONDS:.0f} s: {self.state()}")


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
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--host", "127.0.0.1", "--disable-uvicorn-access-log"]
    return [*command, *vllm_arguments(model, arguments)]


def vllm_arguments(model: Path, arguments: Mapping[str, Any]) -> list[str]:
    """Model and engine arguments as vLLM takes them on a command line."""
    from llmserve.engine.vllm.args import to_argv

    return ["--model", str(model), "--served-model-name", MODEL, *to_argv(dict(arguments))]


def start_ours(model: Path | None, arguments: Mapping[str, Any], logs: Path) -> Server:
    """Start ``llmserve serve``, without waiting; on the scripted engine without a model."""
    command = llmserve_command("vllm" if model else "fake", model, arguments)
    return Server(OURS, command, "/readyz", logs / "llmserve.log")


def start_theirs(model: Path, arguments: Mapping[str, Any], logs: Path) -> Server:
    """Start ``vllm serve``, without waiting."""
    return Server(THEIRS, vllm_command(model, arguments), "/health", logs / "vllm.log")


@contextmanager
def running(
    model: Path | None, arguments: Mapping[str, Any], logs: Path, *, swapped: bool = False
) -> Iterator[list[Server]]:
    """llmserve, and vLLM's own server unless there is no model, in this order or ``swapped``;
    both ready. They are stopped in the end. A ``BenchError`` from inside learns what they
    logged."""
    starts = [partial(start_ours, model, arguments, logs)]
    if model is not None:
        starts.append(partial(start_theirs, model, arguments, logs))
    with ExitStack() as stack:
        servers = []
        for start in reversed(starts) if swapped else starts:
            servers.append(start())
            stack.callback(servers[-1].stop)
        for server in servers:
            server.wait_ready()
        try:
            yield servers
        except BenchError as error:
            raise BenchError("\n".join([str(error), *(s.state() for s in servers)])) from error
