"""Imports go downward only, and vLLM stays in its place."""

from __future__ import annotations

import ast
from pathlib import Path

import llmserve

PACKAGE = Path(llmserve.__file__).parent

# What each part of the package may import of the package; a part may import itself.
BASE = {"types", "errors", "settings", "histogram", "__init__"}
ALLOWED: dict[str, set[str]] = {
    "__init__": set(),
    "__main__": {"cli"},
    "types": set(),
    "errors": set(),
    "histogram": set(),
    "settings": set(),
    "settings_keys": BASE,
    "settings_yaml": BASE | {"settings_keys"},
    # Names of engine arguments; that module imports nothing but the standard library.
    "settings_layers": BASE | {"settings_keys", "settings_yaml", "engine"},
    "settings_load": BASE | {"settings_keys", "settings_layers", "settings_yaml"},
    "modelfile": BASE,
    "loadtest": BASE,
    "provision": BASE | {"modelfile"},
    "catalog": BASE | {"modelfile", "provision"},
    "engine": BASE | {"provision"},
    "state": BASE,
    "gateway": BASE | {"engine", "state"},
    "observability": BASE | {"gateway"},
    "services": BASE | {"catalog", "engine", "gateway", "observability", "state"},
    "http": BASE
    | {"catalog", "modelfile", "engine", "gateway", "observability", "services", "state"},
    "announce": BASE,
    "app": BASE | {"catalog", "engine", "gateway", "observability", "services", "http", "state"},
    "process": BASE | {"engine", "services", "app", "announce", "http"},
    "early": set(),
    "server": BASE | {"observability", "early", "process"},
    "cli": BASE
    | {
        "settings_load",
        "settings_keys",
        "settings_layers",
        "provision",
        "server",
        "engine",
        "modelfile",
        "catalog",
        "state",
        "loadtest",
    },
}
FOREIGN = {"vllm", "torch"}
WEB = {"fastapi", "starlette", "uvicorn", "sse_starlette"}
# vLLM's own serving classes take a request object; only the id in its header is given.
WEB_EXCEPTIONS = {"engine/vllm/face.py", "engine/vllm/core.py"}


def modules() -> list[tuple[str, ast.Module]]:
    return [
        (path.relative_to(PACKAGE).as_posix(), ast.parse(path.read_text("utf-8")))
        for path in sorted(PACKAGE.rglob("*.py"))
    ]


def imports(tree: ast.Module) -> set[str]:
    """Every module that is imported anywhere in the file, at run time or for types."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, "imports are absolute"
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def part(name: str) -> str:
    return name.split("/", maxsplit=1)[0].removesuffix(".py")


def test_imports_go_downward() -> None:
    for name, tree in modules():
        own = part(name)
        allowed = ALLOWED[own] | {own}
        for imported in imports(tree):
            pieces = imported.split(".")
            if pieces[0] != "llmserve" or len(pieces) < 2:
                continue
            assert pieces[1] in allowed | {"__version__"}, f"{name} imports {imported}"


def test_vllm_is_imported_in_its_folder_only() -> None:
    for name, tree in modules():
        if name.startswith(("engine/vllm/", "provision/")):
            continue
        roots = {imported.split(".")[0] for imported in imports(tree)}
        assert not roots & FOREIGN, name


def test_provision_does_not_import_vllm() -> None:
    for name, tree in modules():
        if name.startswith("provision/"):
            assert "vllm" not in {imported.split(".")[0] for imported in imports(tree)}, name


def test_below_http_nothing_speaks_http() -> None:
    for name, tree in modules():
        if part(name) in ("http", "app", "process", "cli") or name in WEB_EXCEPTIONS:
            continue
        roots = {imported.split(".")[0] for imported in imports(tree)}
        assert not roots & WEB, name


def test_the_environment_is_read_at_the_edge_only() -> None:
    """The command line hands it in; vLLM's part writes what vLLM reads, and hands it to the
    processes that it starts."""
    readers = {
        name
        for name, tree in modules()
        if any(
            isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv")
            for node in ast.walk(tree)
        )
    }
    edge = {name for name in readers if name.startswith(("cli/", "provision/"))}
    assert readers - edge == {"engine/vllm/environment.py", "engine/vllm/headstart.py"}
