"""The options that set settings, shared by the commands that load them.

``SHORTHANDS`` are the flags that people expect; ``--set`` reaches everything else. Their
values stay texts here: the settings tree judges them, so that a mistake reads the same
wherever it was made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from llmserve.settings_load import Loaded


@dataclass(frozen=True, slots=True)
class Shorthand:
    """A flag for one setting. ``sets`` makes it a switch that sets this value;
    ``many`` lets it be repeated."""

    flag: str
    key: str
    metavar: str
    help: str
    many: bool = False
    sets: str | None = None

    @property
    def name(self) -> str:
        """The name of the parameter that receives the flag."""
        return self.flag.lstrip("-").replace("-", "_")

    def option(self) -> Callable[[Any], Any]:
        """The flag as click's decorator."""
        text = f"{self.help} [{self.key}]"
        if self.sets is not None:
            return click.option(self.flag, is_flag=True, help=text)
        return click.option(self.flag, metavar=self.metavar, multiple=self.many, help=text)


SHORTHANDS = (
    Shorthand("--host", "server.host", "ADDRESS", "Address to listen on."),
    Shorthand("--port", "server.port", "PORT", "Port to listen on; 0 picks a free one."),
    Shorthand(
        "--cors-origin",
        "server.cors_origins",
        "ORIGIN",
        "Origin that browsers may call from; repeatable.",
        many=True,
    ),
    Shorthand(
        "--timeout", "server.request_timeout_s", "SECONDS", "Longest time for one request; 0: none."
    ),
    Shorthand("--max-concurrent", "admission.max_running", "N", "Most requests taken on at once."),
    Shorthand("--no-gpu", "runtime.device", "", "Ignore GPUs.", sets="cpu"),
    Shorthand("--no-metrics", "metrics.enabled", "", "Do not serve /metrics.", sets="false"),
    Shorthand(
        "--api-key",
        "auth.api_keys",
        "KEY",
        "Key that callers must present; repeatable. Other users of the machine can read "
        "arguments: the variable LLMSERVE_AUTH__API_KEYS is safer.",
        many=True,
    ),
    Shorthand(
        "--served-model-name",
        "model.served_names",
        "NAME",
        "Name that clients ask for; repeatable.",
        many=True,
    ),
    Shorthand("--log-level", "logging.level", "LEVEL", "debug, info, warning or error."),
    Shorthand("--engine", "runtime.engine", "NAME", "vllm, or fake for a scripted engine."),
)


def takes_settings(body: Callable[..., int | None]) -> Callable[..., int | None]:
    """Give a command MODEL, ``--config``, ``--set`` and all shorthands; what it gets of
    them is one argument, the ``Loaded`` settings, before the options of its own."""

    @wraps(body)
    def command(**given: Any) -> int | None:
        texts = {s: given.pop(s.name) for s in SHORTHANDS}
        loaded = _load(
            texts, model=given.pop("model"), config=given.pop("config"), sets=given.pop("sets")
        )
        return body(loaded, **given)

    decorators = [
        click.argument("model", required=False, metavar="[MODEL]"),
        click.option(
            "--config",
            "-c",
            metavar="FILE",
            type=click.Path(path_type=Path),
            help="YAML file with settings. [LLMSERVE_CONFIG]",
        ),
        click.option(
            "--set",
            "sets",
            metavar="KEY=VALUE",
            multiple=True,
            help="Any setting: section.key=value, or engine.… for an argument of vLLM; repeatable.",
        ),
        *(shorthand.option() for shorthand in SHORTHANDS),
    ]
    decorated: Callable[..., int | None] = command
    for decorator in reversed(decorators):
        decorated = decorator(decorated)
    return decorated


def _load(
    texts: dict[Shorthand, Any], *, model: str | None, config: Path | None, sets: tuple[str, ...]
) -> Loaded:
    from llmserve.settings_load import Flag, load_settings

    environ = click.get_current_context().obj
    flags = {}
    if model is not None:
        flags["model.source"] = Flag("MODEL", model)
    for shorthand, value in texts.items():
        if shorthand.sets is not None:
            value = shorthand.sets if value else None
        if value is not None and value != ():
            flags[shorthand.key] = Flag(shorthand.flag, value)
    return load_settings(environ=environ, flags=flags, sets=sets, config=config)
