"""``llmserve generate``: one prompt in, one text out."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from llmserve.cli.failure import CommandFailed
from llmserve.cli.server_options import TEMPERATURE_HELP, reaches_server
from llmserve.cli.terminal import Output
from llmserve.errors import ConfigError

if TYPE_CHECKING:
    from llmserve.cli.client import Client


@click.command
@click.argument("prompt", required=False)
@reaches_server
@click.option("--max-tokens", type=int, metavar="N", help="Most tokens to generate.")
@click.option("--temperature", type=float, metavar="T", help=TEMPERATURE_HELP)
@click.option("--seed", type=int, metavar="N", help="Makes the same choices again.")
@click.option("--stop", multiple=True, metavar="TEXT", help="End before this text; repeatable.")
@click.option(
    "--chat/--raw",
    help="Send the prompt as a chat message, or as it is (the default).",
)
@click.option("--json", "as_json", is_flag=True, help="Print the whole reply as JSON.")
@click.option("--no-stream", is_flag=True, help="Print the text when it is complete.")
def generate(
    client: Client,
    prompt: str | None,
    model: str | None,
    max_tokens: int | None,
    temperature: float | None,
    seed: int | None,
    stop: tuple[str, ...],
    chat: bool,
    as_json: bool,
    no_stream: bool,
) -> None:
    """Generate text from one prompt with a running server.

    PROMPT - (or none) reads it from standard input.

    Only the text goes to standard output, so it can be piped. A last line end of a prompt
    from standard input is left out.
    """
    text = _read_standard_input() if prompt in (None, "-") else prompt
    given = {
        "model": model,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "seed": seed,
        "stop": stop or None,
        "messages": [{"role": "user", "content": text}] if chat else None,
        "prompt": None if chat else text,
    }
    body = {name: value for name, value in given.items() if value is not None}
    output = Output(sys.stdout)
    try:
        if as_json:
            reply = client.post("/generate", body)
            output.write(json.dumps(reply, indent=2, ensure_ascii=False) + "\n")
        elif no_stream:
            output.write(_text(client.post("/generate", body)))
        else:
            _stream(client, body, output)
    finally:
        if output.is_terminal:
            output.end_line()


def _stream(client: Client, body: dict[str, Any], output: Output) -> None:
    from llmserve.cli.client import parse_event

    with client.stream("/generate/stream", body) as events:
        for event in events:
            data = parse_event(event)
            if event.name == "done":
                return
            output.write(_text(data))
    raise CommandFailed("The answer is incomplete: the stream ended without a done event.")


def _text(reply: Any) -> str:
    match reply:
        case {"text": str(text)}:
            return text
    raise CommandFailed("The server sent an answer without text.")


def _read_standard_input() -> str:
    if sys.stdin.isatty():
        raise ConfigError("Give a prompt as an argument, or pipe one in.")
    try:
        text = sys.stdin.buffer.read().decode()
    except UnicodeDecodeError:
        raise ConfigError("The prompt from standard input is not UTF-8 text.") from None
    return text.removesuffix("\n").removesuffix("\r")
