"""Where the state is, for the commands that need it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

import click


def default_state_path(environ: Mapping[str, str]) -> Path:
    """The file with keys and usage when the settings name none. A relative
    ``XDG_STATE_HOME`` does not count, as its specification says. Without a home folder,
    as some services and containers are, it is in ``/var/lib``."""
    given, home = Path(environ.get("XDG_STATE_HOME", "")), Path(environ.get("HOME", ""))
    if given.is_absolute():
        return given / "llmserve" / "llmserve.db"
    if home.is_absolute():
        return home / ".local" / "state" / "llmserve" / "llmserve.db"
    return Path("/var/lib/llmserve/llmserve.db")


def takes_store(body: Callable[..., int | None]) -> Callable[..., int | None]:
    """Give a command ``--config`` and ``--set``; what it gets of them is one argument, the
    open ``Store`` that `llmserve serve` would use with them."""

    @wraps(body)
    def command(config: Path | None, sets: tuple[str, ...], **given: Any) -> int | None:
        from llmserve.settings_load import load_settings
        from llmserve.state import open_store

        environ = click.get_current_context().obj
        settings = load_settings(environ=environ, sets=sets, config=config).settings
        store = open_store(settings.state, default_state_path(environ))
        try:
            return body(store, **given)
        finally:
            store.close()

    options = (
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
            help="Any setting, as for serve; state.url=… says where keys are kept. Repeatable.",
        ),
    )
    decorated: Callable[..., int | None] = command
    for option in reversed(options):
        decorated = option(decorated)
    return decorated
