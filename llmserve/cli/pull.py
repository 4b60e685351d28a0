"""``llmserve pull``."""

from __future__ import annotations

import click


@click.command
@click.argument("model")
@click.option("--revision", metavar="NAME", help="Branch, tag or commit of a Hugging Face id.")
def pull(model: str, revision: str | None) -> None:
    """Obtain a model now, so that serving it later needs no network.

    MODEL is a Hugging Face id, or demo. Prints the folder it is in.
    """
    from llmserve.provision import pull as obtain

    click.echo(obtain(model, revision=revision))
