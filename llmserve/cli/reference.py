"""The generated parts of ``docs/cli.md`` and ``docs/configuration.md``.

``python -m llmserve.cli.reference docs`` writes them; a test compares the committed files
with what would be written.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from pathlib import Path

import click

from llmserve.cli.main import build_group
from llmserve.settings import Settings
from llmserve.settings_keys import ENGINE, setting_keys

_WIDTH = 92
_GENERATED = re.compile(r"(<!-- generated -->\n).*?(<!-- end -->)", re.DOTALL)


def rendered(text: str, part: str) -> str:
    """A document with its generated part replaced."""
    return _GENERATED.sub(lambda found: f"{found[1]}\n{part}\n{found[2]}", text)


def parts() -> dict[str, str]:
    """The generated part of each document, by its file name."""
    return {"cli.md": commands(), "configuration.md": settings()}


def commands() -> str:
    """The help of every command."""
    group = build_group()
    blocks = [_help(group, "llmserve", "")]
    for name, command in group.commands.items():
        blocks.append(_help(command, f"llmserve {name}", "## "))
        if isinstance(command, click.Group):
            blocks += [
                _help(part, f"llmserve {name} {part_name}", "### ")
                for part_name, part in command.commands.items()
            ]
    return "\n".join(blocks)


def settings() -> str:
    """A table for every section of the settings tree."""
    blocks = []
    for section, info in Settings.model_fields.items():
        if section == ENGINE:
            continue
        about = inspect.getdoc(info.annotation) or ""
        lines = [f"### {section}", "", " ".join(about.split()), ""]
        lines += ["| setting | default | allowed | meaning |", "| --- | --- | --- | --- |"]
        for key in setting_keys().values():
            if key.name.startswith(f"{section}."):
                default = json.dumps(key.default)
                cells = (f"`{key.name}`", f"`{default}`", key.allowed, key.description)
                lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


def write(folder: Path) -> None:
    """Bring the documents in this folder up to date."""
    for name, part in parts().items():
        path = folder / name
        path.write_text(rendered(path.read_text(encoding="utf-8"), part), encoding="utf-8")


def _help(command: click.Command, path: str, mark: str) -> str:
    context = click.Context(
        command,
        info_name=path,
        terminal_width=_WIDTH,
        help_option_names=["-h", "--help"],
    )
    title = f"{mark}{path}\n\n" if mark else ""
    return f"{title}```text\n{command.get_help(context)}\n```\n"


if __name__ == "__main__":
    write(Path(sys.argv[1]))
