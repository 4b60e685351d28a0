"""What this machine has, without importing torch. Linux and macOS."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

SIMD = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_tile",
    "amx_bf16",
    "asimd",
    "bf16",
    "i8mm",
    "sve",
)
"""The instruction sets that vLLM's CPU kernels look for."""

SMI_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Gpu:
    """One NVIDIA GPU; memory in bytes."""

    name: str
    memory_bytes: int
    free_bytes: int
    driver: str
    compute_capability: str


@dataclass(frozen=True, slots=True)
class Hardware:
    """``gpu_problem`` says why GPUs cannot be looked at although a driver is there.
    ``cores`` are those this process may use."""

    system: str
    machine: str
    cpu: str
    cores: int
    simd: tuple[str, ...]
    memory_bytes: int
    memory_free_bytes: int
    disk_path: str
    disk_free_bytes: int
    gpus: tuple[Gpu, ...] = ()
    gpu_problem: str | None = None


def look(disk: Path) -> Hardware:
    """Look at the machine; ``disk`` is the folder whose file system is meant."""
    import psutil

    memory = psutil.virtual_memory()
    existing = disk.absolute()
    while not existing.exists():
        existing = existing.parent
    cpu, flags = _cpu()
    gpus, problem = _gpus()
    return Hardware(
        system=_system(),
        machine=platform.machine(),
        cpu=cpu,
        cores=_cores(),
        simd=tuple(name for name in SIMD if name in flags),
        memory_bytes=memory.total,
        memory_free_bytes=memory.available,
        disk_path=str(existing),
        disk_free_bytes=shutil.disk_usage(existing).free,
        gpus=gpus,
        gpu_problem=problem,
    )


def _system() -> str:
    if platform.system() != "Linux":
        return f"{platform.system()} {platform.release()}"
    try:
        name = platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    except OSError:
        name = "Linux"
    return f"{name}, kernel {platform.release()}"


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def _cpu() -> tuple[str, frozenset[str]]:
    """Model name and instruction sets, from /proc where there is one."""
    name, flags = platform.processor() or platform.machine(), frozenset[str]()
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return name, flags
    for line in text.splitlines():
        key, _, value = line.partition(":")
        match key.strip():
            case "model name":
                name = value.strip()
            case "flags" | "Features":
                flags = frozenset(value.split())
        if not line.strip():
            break  # the other cores are the same
    return name, flags


def _gpus() -> tuple[tuple[Gpu, ...], str | None]:
    smi = shutil.which("nvidia-smi") or shutil.which("nvidia-smi", path="/usr/lib/wsl/lib")
    driver_there = Path("/proc/driver/nvidia/version").exists()
    if smi is None:
        return (
            (),
            "the NVIDIA driver is loaded, but nvidia-smi is missing" if driver_there else None,
        )
    fields = "name,memory.total,memory.free,driver_version,compute_cap"
    command = [smi, f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=SMI_SECONDS)
    except subprocess.TimeoutExpired:
        return (), f"nvidia-smi did not answer within {SMI_SECONDS:.0f} seconds"
    except OSError as error:
        return (), f"nvidia-smi cannot be run: {error.strerror}"
    if answer.returncode != 0:
        words = (answer.stdout + answer.stderr).strip().partition("\n")[0]
        return (), f"nvidia-smi failed: {words or f'status {answer.returncode}'}"
    return parse_gpus(answer.stdout), None


def parse_gpus(text: str) -> tuple[Gpu, ...]:
    """The rows of nvidia-smi's CSV answer; memory there is in MiB."""
    gpus = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) == 5:
            name, total, free, driver, capability = cells
            gpus.append(Gpu(name, _mebibytes(total), _mebibytes(free), driver, capability))
    return tuple(gpus)


def _mebibytes(cell: str) -> int:
    # GPUs that share the machine's memory answer "[N/A]".
    return int(float(cell) * 2**20) if cell.replace(".", "", 1).isdigit() else 0
