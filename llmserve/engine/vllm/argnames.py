"""Which arguments the installed vLLM takes, without importing it.

Importing vLLM costs seconds; its argument dataclasses are read as text instead, so that a
mistyped name under ``engine:`` is refused at once. A test compares the result with the
real dataclass fields.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

_ENGINE_FILE = "engine/arg_utils.py"
_ENGINE_CLASSES = ("EngineArgs", "AsyncEngineArgs")
_FRONTEND_FILE = "entrypoints/launchers/cli_args.py"
_FRONTEND_CLASSES = ("BaseFrontendArgs",)

FRONTEND = frozenset(
    {
        "anthropic_disabled_thinking_effort",
        "chat_template",
        "chat_template_content_format",
        "default_chat_template_kwargs",
        "enable_auto_tool_choice",
        "enable_prompt_tokens_details",
        "exclude_tools_when_tool_choice_none",
        "lora_modules",
        "response_role",
        "return_tokens_as_token_ids",
        "tool_call_parser",
        "tool_parser_plugin",
        "tool_strict_level",
    }
)
"""Arguments of vLLM's OpenAI layer that are honoured here. The others are about its own
HTTP server, or let a request bring templates and tools along."""

OWNED = {
    "allowed_origins": "server.cors_origins",
    "api_key": "auth.api_keys",
    "device": "runtime.device",
    "disable_fastapi_docs": "server.docs",
    "disable_log_stats": "metrics.enabled",
    "disable_uvicorn_access_log": "logging.access",
    "enable_log_requests": "logging.access",
    "host": "server.host",
    "model": "model.source",
    "port": "server.port",
    "revision": "model.revision",
    "served_model_name": "model.served_names",
    "sse_keep_alive_interval": "server.keep_alive_s",
    "trust_remote_code": "model.trust_remote_code",
    "uvicorn_log_level": "logging.level",
}
"""Arguments of vLLM that a setting of ours stands for: giving both could disagree."""


def engine_argument_names() -> frozenset[str] | None:
    """The names that may stand under ``engine:``, or ``None`` when no vLLM is installed
    (or its files are laid out in a way that this version does not know)."""
    root = _vllm_folder()
    if root is None:
        return None
    try:
        engine = class_fields(root / _ENGINE_FILE, _ENGINE_CLASSES)
        frontend = class_fields(root / _FRONTEND_FILE, _FRONTEND_CLASSES)
    except (OSError, SyntaxError, ValueError):
        return None
    names = engine | (frontend & FRONTEND)
    return frozenset(n for n in names if not n.startswith("_")) - OWNED.keys() or None


def class_fields(path: Path, classes: Iterable[str]) -> frozenset[str]:
    """The annotated fields of these classes of a Python file, which is not run."""
    wanted = set(classes)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return frozenset(
        statement.target.id
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name in wanted
        for statement in node.body
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
    )


def _vllm_folder() -> Path | None:
    try:
        spec = find_spec("vllm")
    except (ImportError, ValueError):
        return None
    locations = spec.submodule_search_locations if spec else None
    return Path(locations[0]) if locations else None
