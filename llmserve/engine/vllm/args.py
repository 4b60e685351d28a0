"""Settings into vLLM's own argument namespace, checked by vLLM's own parser.

``vllm serve`` builds engine and OpenAI layer from one ``argparse`` namespace; so do we,
because then every argument means here exactly what it means there.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Mapping
from typing import Any, NoReturn

from llmserve.errors import ConfigError
from llmserve.settings import Settings


def to_argv(arguments: dict[str, Any]) -> list[str]:
    """``{"max_model_len": 2048, "enable_lora": True}`` as command-line words."""
    argv: list[str] = []
    for name, value in arguments.items():
        flag = "--" + name.replace("_", "-")
        if value is None:
            continue
        if isinstance(value, bool):
            argv.append(flag if value else "--no-" + flag[2:])
        elif isinstance(value, list | tuple):
            argv += [flag, *(_word(item) for item in value)]
        else:
            argv += [flag, _word(value)]
    return argv


def build_namespace(
    settings: Settings,
    model: str,
    model_defaults: Mapping[str, Any],
    *,
    on_cpu: bool,
) -> Namespace:
    """vLLM's argument namespace for this server: our defaults, then those that suit the
    model, then the settings.

    Raises ``ConfigError`` with vLLM's own words when it refuses a name or a value.
    """
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    class Parser(FlexibleArgumentParser):  # type: ignore[misc]  # vLLM is untyped here
        def error(self, message: str) -> NoReturn:
            raise ConfigError(f"vLLM refuses the engine settings: {message}")

    arguments = _defaults(settings, on_cpu=on_cpu) | dict(model_defaults) | settings.engine
    if arguments.pop("disable_log_stats", False):
        raise ConfigError(
            "engine.disable_log_stats cannot be true: usage and readiness are taken from "
            "these statistics."
        )
    arguments |= {
        "model": model,
        "served_model_name": [settings.model.names[0]],
        "revision": settings.model.revision,
        "trust_remote_code": settings.model.trust_remote_code or None,
    }
    try:
        namespace: Namespace = make_arg_parser(Parser(prog="engine")).parse_args(to_argv(arguments))
        validate_parsed_serve_args(namespace)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"vLLM refuses the engine settings: {error}") from error
    return namespace


def _defaults(settings: Settings, *, on_cpu: bool) -> dict[str, Any]:
    """Where our defaults differ from vLLM's; ``engine:`` overrides each of them."""
    defaults: dict[str, Any] = {
        # Cached prompt tokens belong in the bill.
        "enable_prompt_tokens_details": True,
        "max_logprobs": settings.limits.max_logprobs,
        # The stages of /readyz say how far the start is.
        "use_tqdm_on_load": settings.logging.level == "debug",
        # Small models fill the room that a JSON grammar leaves for white space for ever.
        "structured_outputs_config": {"disable_any_whitespace": True, "backend": "xgrammar"},
    }
    if "tool_call_parser" not in settings.engine:
        # Forced tool calls need some parser; "hermes" reads the format most models use.
        defaults |= {"tool_call_parser": "hermes", "enable_auto_tool_choice": True}
    if on_cpu:
        # Compiling costs a minute at every cold start and gains about a fifth in speed.
        defaults["enforce_eager"] = True
    return defaults


def _word(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict | list) else str(value)
