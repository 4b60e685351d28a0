"""The options of the commands that talk to a running server."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import click

DEFAULT_URL = "http://127.0.0.1:8000"
TEMPERATURE_HELP = "Randomness; 0 always takes the likeliest token."


def reaches_server(body: Callable[..., int | None]) -> Callable[..., int | None]:
    """Give a command ``--url``, ``--api-key`` and ``--model``; instead of the first two
    it gets a ``client``, which is closed after it."""

    @wraps(body)
    def command(url: str | None, api_key: str | None, **given: Any) -> int | None:
        from llmserve.cli.client import Client

        environ = click.get_current_context().obj
        client = Client(
            url or environ.get("LLMSERVE_CLIENT_URL") or DEFAULT_URL,
            api_key or environ.get("LLMSERVE_CLIENT_API_KEY"),
        )
        try:
            return body(client=client, **given)
        finally:
            client.close()

    decorated: Callable[..., int | None] = command
    for decorator in (
        click.option("--model", metavar="NAME", help="Model to ask; default: the server's."),
        click.option("--api-key", metavar="KEY", help="API key. [LLMSERVE_CLIENT_API_KEY]"),
        click.option("--url", help=f"Server; default: {DEFAULT_URL}. [LLMSERVE_CLIENT_URL]"),
    ):
        decorated = decorator(decorated)
    return decorated
