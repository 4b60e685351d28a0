"""How a command ends badly."""

from __future__ import annotations


class CommandFailed(Exception):
    """The command cannot do its work; its text is one sentence for the terminal."""
