"""The environment variables that vLLM reads, set before it is imported.

vLLM takes some of its configuration from the environment only. ``settings_load`` stays
the only reader of the environment: this file writes what the settings say and what this
server depends on, and leaves alone what else the operator has set for vLLM himself.
"""

from __future__ import annotations

import os
from pathlib import Path
from uuid import uuid4

from llmserve.settings import Settings

_MOST_SOCKET_BYTES = 107
"""Of the path of a socket (``unix(7)``)."""

_QUIET = ("TORCH_LOGS", "TORCH_CPP_LOG_LEVEL", "PYTHONWARNINGS")


def prepare_environment(settings: Settings, model: str, logging_config: Path) -> None:
    """Write vLLM's environment variables for this engine into ``os.environ``."""
    forced = {
        # The server has threads by the time an engine starts: forking it is unsafe.
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_LOGGING_CONFIG_PATH": str(logging_config),
        "VLLM_LOGGING_LEVEL": "INFO",
    }
    if len(os.fsencode(f"{logging_config.parent}/{uuid4()}")) <= _MOST_SOCKET_BYTES:
        # vLLM leaves its sockets behind; this folder is removed with what is in it.
        forced["VLLM_RPC_BASE_PATH"] = str(logging_config.parent)
    os.environ.update(forced)
    defaults = {
        # Notes of torch's and vLLM's to their own developers, from every process.
        "TORCH_LOGS": "-all",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        # The second one: vLLM ends its worker before that gives its shared memory back;
        # Python's tracker does so, and says it.
        "PYTHONWARNINGS": (
            "ignore::FutureWarning,ignore::UserWarning:multiprocessing.resource_tracker"
        ),
        # vLLM allows 4 by itself; our own limit is the one that is documented.
        "VLLM_MAX_STOP_STRINGS": str(settings.limits.max_stop_strings),
        "VLLM_CPU_KVCACHE_SPACE": str(settings.runtime.cpu_kv_cache_gib),
        # Rust tokenizers warn about threads when a process forks later on.
        "TOKENIZERS_PARALLELISM": "false",
    }
    if Path(model).is_dir():
        # Everything is here already; without this the hub is asked about a local folder.
        defaults["HF_HUB_OFFLINE"] = "1"
    if settings.runtime.device == "cpu":
        defaults["CUDA_VISIBLE_DEVICES"] = ""
    if settings.logging.level == "debug":
        for name in _QUIET:
            del defaults[name]
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
