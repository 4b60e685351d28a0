"""The command line as a whole: help, start-up cost, exit codes."""

from __future__ import annotations

import subprocess
import sys

import pytest
from cli_support import Run

from llmserve import __version__
from llmserve.cli.main import build_group

HEAVY = (
    "fastapi",
    "httpx",
    "prometheus_client",
    "pydantic",
    "rich",
    "torch",
    "transformers",
    "uvicorn",
    "vllm",
    "yaml",
)


def imported_by(*args: str) -> set[str]:
    """The modules that are loaded when a command has ended."""
    program = (
        "import sys; from llmserve.cli.main import run; code = run(sys.argv[1:]); "
        "print('\\n'.join(['#'] + list(sys.modules))); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *args], capture_output=True, text=True, check=True
    )
    return set(done.stdout.rpartition("#\n")[2].splitlines())


@pytest.mark.parametrize(
    "args",
    [["--help"], ["--version"], *([name, "--help"] for name in build_group().commands)],
    ids=" ".join,
)
def test_help_imports_nothing_heavy(args: list[str]) -> None:
    assert not imported_by(*args) & set(HEAVY)


def test_checking_engine_arguments_does_not_import_the_engine() -> None:
    modules = imported_by("config", "--set", "engine.seed=1")
    assert not modules & {"vllm", "torch", "fastapi", "httpx"}


def test_version(llmserve: Run) -> None:
    done = llmserve("--version")
    assert (done.returncode, done.stdout) == (0, f"llmserve {__version__}\n")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["serv"], "No such command 'serv'. Did you mean 'serve'?"),
        (["serve", "--prot", "1"], "No such option '--prot'"),
        (["serve", "--port", "x"], "llmserve: flag --port: server.port: 'x' is not allowed; "),
        (["serve", "a", "b"], "unexpected extra argument"),
        (["serve", "--config", "/nowhere.yaml"], "/nowhere.yaml: there is no such file."),
        (["serve", "--engine", "other"], "must be one of vllm, fake."),
        (["generate", "x", "--max-tokens", "many"], "'many' is not a valid integer"),
        (["chat", "--url", "localhost:8000"], "--url: 'localhost:8000' is not allowed"),
        (["chat", "--url", "http://a:b"], "--url: 'http://a:b' is not allowed"),
        (["chat", "--api-key", "schlüssel"], "printable ASCII"),
    ],
)
def test_wrong_calls_end_with_2_and_a_sentence(llmserve: Run, args: list[str], said: str) -> None:
    done = llmserve(*args)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_wrong_variables_stop_the_start(llmserve: Run) -> None:
    done = llmserve("serve", LLMSERVE_SERVER__PORT="x", LLMSERVE_SEVER__PORT="1")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "llmserve: environment LLMSERVE_SEVER__PORT: not a setting; variables are named "
        "LLMSERVE_SECTION__KEY. Did you mean LLMSERVE_SERVER__PORT?",
        "llmserve: environment LLMSERVE_SERVER__PORT: server.port: 'x' is not allowed; "
        "it must be a whole number from 0 to 65535.",
    ]
