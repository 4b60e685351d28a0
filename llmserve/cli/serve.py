"""``llmserve serve``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from llmserve.cli.options import takes_settings
from llmserve.cli.state import default_state_path

if TYPE_CHECKING:
    from llmserve.settings_load import Loaded


@click.command
@takes_settings
def serve(loaded: Loaded) -> int:
    """Serve a model over HTTP.

    MODEL is a Hugging Face id, a local folder, a .gguf file, or demo, which is the
    default [model.source].

    Settings come from flags and --set, then from LLMSERVE_SECTION__KEY variables, then
    from the file, then from the defaults. `llmserve config` shows them.
    """
    from llmserve.server import run

    for note in loaded.notes:
        click.echo(f"llmserve: {note}", err=True)
    return run(loaded.settings, default_state_path(click.get_current_context().obj))
