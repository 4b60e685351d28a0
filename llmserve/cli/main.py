"""The ``llmserve`` command.

click, not typer: typer 0.29 builds a pydantic adapter for every option, which alone costs
300 ms before ``--help`` can answer.
"""

from __future__ import annotations

import os
import sys

import click

from llmserve import __version__
from llmserve.cli.bench import bench
from llmserve.cli.chat import chat
from llmserve.cli.config import config
from llmserve.cli.doctor import doctor
from llmserve.cli.failure import CommandFailed
from llmserve.cli.generate import generate
from llmserve.cli.inspect import inspect
from llmserve.cli.keys import keys
from llmserve.cli.pull import pull
from llmserve.cli.serve import serve
from llmserve.errors import ConfigError, LlmserveError

COMMANDS = (serve, chat, generate, bench, keys, pull, inspect, config, doctor)


class _InOrder(click.Group):
    """Lists its commands in the order of use, not of the alphabet."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return list(self.commands)


def main() -> None:
    """Run the command line. Exit codes: 0; 1 when a command fails; 2 when it was called
    or configured wrongly; 130 after Ctrl-C."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code. Failures are sentences on standard
    error; a traceback means a bug."""
    try:
        # The only place that reads the environment; commands find it in their context.
        code = build_group().main(
            arguments, prog_name="llmserve", standalone_mode=False, obj=dict(os.environ)
        )
    except click.Abort:
        return 130
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (LlmserveError, CommandFailed) as error:
        for line in str(error).splitlines():
            click.echo(f"llmserve: {line}", err=True)
        return 2 if isinstance(error, ConfigError) else 1
    return code if isinstance(code, int) else 0


def build_group() -> click.Group:
    """All commands. Each returns its exit code, ``None`` meaning 0."""
    return _InOrder(
        name="llmserve",
        help="An LLM text-generation server built on vLLM.\n\n"
        "Start with `llmserve serve`, then talk to it with `llmserve chat`.",
        commands={command.name or "": command for command in COMMANDS},
        params=[_version_option()],
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )


def _version_option() -> click.Option:
    def show(context: click.Context, _option: click.Parameter, wanted: bool) -> None:
        if wanted:
            click.echo(f"llmserve {__version__}")
            context.exit()

    return click.Option(
        ["--version"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=show,
        help="Show the version and exit.",
    )
