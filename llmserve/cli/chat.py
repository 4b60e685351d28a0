"""``llmserve chat``: a conversation with a running server in the terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

from llmserve.cli.failure import CommandFailed
from llmserve.cli.server_options import TEMPERATURE_HELP, reaches_server
from llmserve.cli.terminal import Output

if TYPE_CHECKING:
    from llmserve.cli.client import Client

_HELP = "/reset forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C stops an answer."


@click.command
@reaches_server
@click.option("--system", metavar="TEXT", help="System message of the conversation.")
@click.option("--max-tokens", type=int, metavar="N", help="Most tokens of one answer.")
@click.option("--temperature", type=float, metavar="T", help=TEMPERATURE_HELP)
def chat(
    client: Client,
    model: str | None,
    system: str | None,
    max_tokens: int | None,
    temperature: float | None,
) -> int:
    """Chat with the model of a running server.

    /reset forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C stops an answer. When
    standard input is a pipe, each line is a turn and only answers are printed.
    """
    options = {"max_tokens": max_tokens, "temperature": temperature}
    chosen = {name: value for name, value in options.items() if value is not None}
    talk = Conversation(client, model or client.first_model(), system, chosen)
    if sys.stdin.isatty() and sys.stdout.isatty():
        return _interactive(talk, Output(sys.stdout))
    return _piped(talk, Output(sys.stdout))


@dataclass(slots=True)
class Answer:
    """What one answer has brought so far. Times are ``time.monotonic()`` seconds."""

    text: str = ""
    tokens: int | None = None
    asked_at: float = field(default_factory=time.monotonic)
    first_at: float | None = None
    last_at: float | None = None

    def summary(self) -> str:
        """``24 tokens, 0.31 s to the first, 65.2 tokens/s``, as far as it is known."""
        parts = [] if self.tokens is None else [f"{self.tokens} tokens"]
        if self.first_at is not None and self.last_at is not None:
            parts.append(f"{self.first_at - self.asked_at:.2f} s to the first")
            seconds = self.last_at - self.first_at
            if self.tokens is not None and self.tokens > 1 and seconds > 0:
                parts.append(f"{(self.tokens - 1) / seconds:.1f} tokens/s")
        return ", ".join(parts)


class Conversation:
    """The turns so far and the server that continues them."""

    def __init__(
        self, client: Client, model: str, system: str | None, options: dict[str, Any]
    ) -> None:
        self.model = model
        self._client = client
        self._options = options
        self._opening = [{"role": "system", "content": system}] if system else []
        self._turns: list[dict[str, str]] = []

    def reset(self) -> None:
        """Forget everything but the system message."""
        self._turns = []

    def ask(self, text: str, output: Output) -> Answer:
        """Print the answer to the next turn while it comes. What was printed is
        remembered, also when Ctrl-C stops it; a failed turn is forgotten."""
        answer = Answer()
        self._turns.append({"role": "user", "content": text})
        try:
            for delta in self._deltas(answer):
                output.write(delta)
        except CommandFailed:
            self._turns.pop()
            raise
        except KeyboardInterrupt:
            self._remember(answer)
            raise
        finally:
            output.end_line()
        self._remember(answer)
        return answer

    def _remember(self, answer: Answer) -> None:
        if answer.text:
            self._turns.append({"role": "assistant", "content": answer.text})
        else:
            self._turns.pop()

    def _deltas(self, answer: Answer) -> Iterator[str]:
        from llmserve.cli.client import parse_event

        body = {
            "model": self.model,
            "messages": self._opening + self._turns,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self._options,
        }
        with self._client.stream("/v1/chat/completions", body) as events:
            for event in events:
                if event.data == "[DONE]":
                    return
                data = parse_event(event)
                match data.get("usage"):
                    case {"completion_tokens": int(tokens)}:
                        answer.tokens = tokens
                match data.get("choices"):
                    case [{"delta": {"content": str(text)}}, *_] if text:
                        answer.last_at = time.monotonic()
                        answer.first_at = answer.first_at or answer.last_at
                        answer.text += text
                        yield text
        raise CommandFailed("The answer is incomplete: the stream ended without [DONE].")


def _piped(talk: Conversation, output: Output) -> int:
    try:
        for line in sys.stdin.buffer:
            text = line.decode().strip()
            if text == "/exit":
                break
            if text == "/reset":
                talk.reset()
            elif text:
                talk.ask(text, output)
    except UnicodeDecodeError:
        raise CommandFailed("Standard input is not UTF-8 text.") from None
    return 0


def _interactive(talk: Conversation, output: Output) -> int:
    from rich.console import Console

    # input() edits and remembers lines once this module is loaded; some builds lack it.
    with suppress(ImportError):
        import_module("readline")
    aside = Console(stderr=True, highlight=False, markup=False)
    aside.print(f"{talk.model}. {_HELP}", style="dim")
    failed = False
    while True:
        try:
            text = input("> ").strip()
        except EOFError:
            output.write("\n")
            break
        except KeyboardInterrupt:
            output.write("\n")
            continue
        if text == "/exit":
            break
        if text == "/reset":
            talk.reset()
            aside.print("Forgotten.", style="dim")
        elif text.startswith("/"):
            aside.print(_HELP, style="dim")
        elif text:
            failed |= not _turn(talk, text, output, aside)
    return 1 if failed else 0


def _turn(talk: Conversation, text: str, output: Output, aside: Any) -> bool:
    """Whether the turn went well; a failure is shown and the conversation goes on."""
    try:
        answer = talk.ask(text, output)
    except KeyboardInterrupt:
        aside.print("Stopped.", style="dim")
    except CommandFailed as error:
        aside.print(str(error), style="red")
        return False
    else:
        aside.print(answer.summary(), style="dim")
    return True
