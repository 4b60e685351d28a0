"""The layers that settings come from. Each is read into entries that know their source;
what is wrong in it is noted, so that all mistakes can be reported together.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmserve.engine.vllm.argnames import OWNED, engine_argument_names
from llmserve.settings_keys import (
    ENGINE,
    Key,
    did_you_mean,
    nearest,
    section_names,
    setting_keys,
    unknown_setting,
)
from llmserve.settings_yaml import BadYaml, Document, Item, parse_text

PREFIX = "LLMSERVE_"
RESERVED = frozenset(
    {"LLMSERVE_CACHE", "LLMSERVE_CONFIG", "LLMSERVE_CLIENT_URL", "LLMSERVE_CLIENT_API_KEY"}
)
"""Variables that are not settings: the cache folder, the configuration file, and what
``llmserve chat`` and ``generate`` connect to."""

MASK = "**********"

# Kubernetes sets these in every pod beside a service whose name begins with "llmserve".
_KUBERNETES = re.compile(
    r"_SERVICE_(HOST|PORT)(_\w+)?$|_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?$"
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One value for one path of the tree. A path has two parts, or more when it goes
    into the value of an engine argument."""

    path: tuple[str, ...]
    value: Any
    source: str


@dataclass(slots=True)
class Reading:
    """What has been read so far, the lowest layer first, and what was wrong in it."""

    keys: Mapping[str, Key] = field(default_factory=setting_keys)
    entries: list[Entry] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def blame(self, source: str, problem: str) -> None:
        """Note a mistake."""
        self.problems.append(f"{source}: {problem}")

    def add(self, name: str, value: Any, source: str) -> None:
        """Take a value that needs no reading."""
        self.entries.append(Entry(tuple(name.split(".")), value, source))

    def add_text(self, name: str, text: str, source: str) -> None:
        """Read a text as the setting of this name wants it."""
        if not self._known(name, source):
            return
        key = self.keys.get(name)
        try:
            self.add(name, parse_text(text, key), source)
        except BadYaml as error:
            shown = display(text, secret=key is not None and key.secret)
            self.blame(source, f"{name}: {shown} cannot be read: {error.problem}.")

    def read_file(self, path: Path) -> None:
        """Take all settings of a YAML file."""
        try:
            document = Document.read(path)
            sections = document.items(document.root)
            if sections is None:
                raise BadYaml(f"the file must hold sections: {', '.join(section_names())}", 1)
            for section in sections:
                self._read_section(path, document, section)
        except BadYaml as error:
            self.blame(f"{path}:{error.line}" if error.line else str(path), f"{error.problem}.")

    def _read_section(self, path: Path, document: Document, section: Item) -> None:
        where = f"{path}:{section.line}"
        items = document.items(section.node)
        if section.name in self.keys:
            parent, _, leaf = section.name.partition(".")
            self.blame(where, f"write {leaf} below {parent}:, indented, not as {section.name}.")
        elif section.name not in section_names():
            self._known(section.name, where)
        elif items is None:
            self.blame(where, f"{section.name} is a section; its settings go below it, indented.")
        else:
            for item in items:
                name, source = f"{section.name}.{item.name}", f"{path}:{item.line}"
                if self._known(name, source):
                    value = document.value(item.node, self.keys.get(name))
                    # Not split at dots: a name in a file is one name.
                    self.entries.append(Entry((section.name, item.name), value, source))

    def read_environment(self, environ: Mapping[str, str]) -> None:
        """Take all variables of ours."""
        for variable, value in sorted(environ.items()):
            if not variable.startswith(PREFIX) or variable in RESERVED:
                continue
            if _from_kubernetes(variable, value):
                continue
            source = f"environment {variable}"
            name = variable.removeprefix(PREFIX).lower().replace("__", ".")
            key = self.keys.get(name)
            if key is None and not name.startswith(f"{ENGINE}."):
                self.blame(source, _unknown_variable(name, self.keys))
            # Compose files pass unset variables on as empty ones, so empty means not
            # given; but an empty secret must not quietly open the server.
            elif value or (key is not None and key.secret):
                self.add_text(name, value, source)

    def read_set(self, text: str) -> None:
        """Take one ``section.key=value`` from the command line."""
        name, equals, value = text.partition("=")
        name = name.strip()
        if equals:
            self.add_text(name, value, f"--set {name}")
        else:
            self.blame(f"--set {name}", "it is written --set section.key=value.")

    def check_engine_names(self) -> bool:
        """Whether the engine arguments could be checked; mistakes are noted."""
        given = [entry for entry in self.entries if entry.path[0] == ENGINE]
        names = engine_argument_names() if given else frozenset()
        for entry in given:
            name = entry.path[1]
            if name in OWNED:
                problem = f"engine.{name} is not given to vLLM directly; set {OWNED[name]}."
                self.blame(entry.source, problem)
            elif names is not None and name not in names:
                hint = did_you_mean(name, names)
                problem = f"engine.{name} is not an argument of the installed vLLM.{hint}"
                self.blame(entry.source, problem)
        return names is not None

    def _known(self, name: str, source: str) -> bool:
        """Whether this is a setting (the names of engine arguments are checked later)."""
        section, _, rest = name.partition(".")
        if name in self.keys or (section == ENGINE and rest and all(rest.split("."))):
            return True
        if name in section_names():
            self.blame(source, f"{name} is a section; name one setting in it.")
        else:
            self.blame(source, unknown_setting(name, self.keys))
        return False


def display(value: Any, *, secret: bool = False) -> str:
    """A value as it is shown in a message: short, on one line, and masked if secret."""
    if secret:
        return MASK
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:76]} ..."


def _unknown_variable(name: str, keys: Mapping[str, Key]) -> str:
    meant = [PREFIX + key.upper().replace(".", "__") for key in nearest(name, keys)]
    hint = f" Did you mean {' or '.join(meant)}?" if meant else ""
    return f"not a setting; variables are named {PREFIX}SECTION__KEY.{hint}"


def _from_kubernetes(variable: str, value: str) -> bool:
    if variable.endswith("_PORT") and "://" in value:
        return True
    return _KUBERNETES.search(variable) is not None
