"""``llmserve config``: the effective configuration and where it comes from."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from llmserve.cli.options import takes_settings

if TYPE_CHECKING:
    from llmserve.settings_load import Loaded


@click.command(short_help="Show the effective settings and where each came from.")
@takes_settings
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--schema", is_flag=True, help="Print the JSON schema of the configuration file.")
def config(loaded: Loaded, as_json: bool, schema: bool) -> None:
    """Show the settings that `llmserve serve` would use, and where each came from.

    Takes the same options as serve and checks them the same way. Secrets are masked.
    """
    from llmserve.settings_load import masked

    for note in loaded.notes:
        click.echo(f"llmserve: {note}", err=True)
    tree = masked(loaded.settings)
    if schema:
        click.echo(json.dumps(type(loaded.settings).model_json_schema(), indent=2))
    elif as_json:
        document = {"settings": tree, "sources": loaded.sources}
        click.echo(json.dumps(document, indent=2, ensure_ascii=False, default=str))
    elif sys.stdout.isatty():
        _print_table(tree, loaded)
    else:
        for name, value in _rows(tree):
            click.echo(f"{name} = {value}  ({loaded.sources[name]})")


def _rows(tree: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for section, settings in tree.items():
        for field, value in settings.items():
            yield f"{section}.{field}", json.dumps(value, ensure_ascii=False, default=str)


def _print_table(tree: dict[str, Any], loaded: Loaded) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("setting", "value", "source", box=None, pad_edge=False)
    for name, value in _rows(tree):
        source = loaded.sources[name]
        style = "dim" if source == "default" else "bold"
        table.add_row(*(Text(cell, style=style) for cell in (name, value, source)))
    Console().print(table)
