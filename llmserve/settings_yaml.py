"""YAML with a memory for lines: the file layer of the settings, and the reading of the
short texts that come from variables and from ``--set``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from llmserve.settings_keys import Key, Kind

_NULLS = frozenset({"null", "Null", "NULL", "~"})
_TIMESTAMP = "tag:yaml.org,2002:timestamp"
_NULL_TAG = "tag:yaml.org,2002:null"


class BadYaml(Exception):
    """YAML that cannot be read. ``line`` counts from 1; ``None`` when there is none."""

    def __init__(self, problem: str, line: int | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.line = line


class _Loader(yaml.SafeLoader):
    """Safe YAML in which ``1e-3`` is a number (PyYAML takes it for text) and
    ``2024-01-01`` is text (no setting is a date, but a model's revision may look so)."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own class-level table
        first: [(tag, regex) for tag, regex in pairs if tag != _TIMESTAMP]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


@dataclass(frozen=True, slots=True)
class Item:
    """One ``key: value`` of a mapping and the line of its key."""

    name: str
    node: yaml.Node
    line: int


class Document:
    """One YAML document, whose values are made only when it is known what each is for."""

    def __init__(self, text: str) -> None:
        """Raises ``BadYaml``: not YAML, several documents, a key given twice."""
        try:
            self._loader = _Loader(text)
            self.root: yaml.Node | None = self._loader.get_single_node()
            if self.root is not None:
                self._check(self.root, ())
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            raise BadYaml(error.problem or "not YAML", mark.line + 1 if mark else None) from None
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            raise BadYaml("a character that YAML does not allow", line) from None
        except RecursionError:
            raise BadYaml("nested too deeply") from None

    @classmethod
    def read(cls, path: Path) -> Document:
        """Raises ``BadYaml`` also when the file cannot be read."""
        try:
            return cls(path.read_bytes().decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            line = error.object.count(b"\n", 0, error.start) + 1
            raise BadYaml("not UTF-8 text", line) from None
        except FileNotFoundError:
            raise BadYaml("there is no such file") from None
        except OSError as error:
            raise BadYaml(error.strerror or "it cannot be read") from None

    def items(self, node: yaml.Node | None) -> Iterator[Item] | None:
        """The entries of a mapping; ``None`` when it is something else. Nothing at all
        (an empty file, a section whose lines are all comments) is an empty mapping."""
        if node is None or node.tag == _NULL_TAG:
            return iter(())
        if not isinstance(node, yaml.MappingNode):
            return None
        self._loader.flatten_mapping(node)
        return (Item(key.value, value, _line(key)) for key, value in node.value)

    def value(self, node: yaml.Node, key: Key | None = None) -> Any:
        """The value of a node, as ``key`` wants it; ``None``: whatever YAML makes of it."""
        kind = key.kind if key else None
        if kind in (Kind.TEXT, Kind.CHOICE) and isinstance(node, yaml.ScalarNode):
            return None if node.tag == _NULL_TAG else node.value
        if kind is Kind.TEXTS and isinstance(node, yaml.SequenceNode):
            return [self._text(item) for item in node.value]
        if kind is Kind.TEXTS and isinstance(node, yaml.ScalarNode) and node.tag != _NULL_TAG:
            return [node.value]
        try:
            return self._loader.construct_document(node)
        except yaml.MarkedYAMLError as error:
            raise BadYaml(error.problem or "not a value", _line(node)) from None

    def _text(self, node: yaml.Node) -> Any:
        if isinstance(node, yaml.ScalarNode) and node.tag != _NULL_TAG:
            return node.value
        return self.value(node)

    def _check(self, node: yaml.Node, above: tuple[yaml.Node, ...]) -> None:
        """PyYAML lets the last of two equal keys win and loops on a node inside itself."""
        if any(node is ancestor for ancestor in above):
            raise BadYaml("an alias that contains itself", _line(node))
        above = (*above, node)
        if isinstance(node, yaml.SequenceNode):
            for item in node.value:
                self._check(item, above)
        if isinstance(node, yaml.MappingNode):
            seen: dict[str, int] = {}
            for key, value in node.value:
                name = key.value
                if not isinstance(key, yaml.ScalarNode):
                    raise BadYaml("a key must be a plain name", _line(key))
                if name in seen:
                    problem = f"{name} is given twice, first in line {seen[name]}"
                    raise BadYaml(problem, _line(key))
                seen[name] = _line(key)
                self._check(value, above)


def parse_text(text: str, key: Key | None) -> Any:
    """The value of a variable or of ``--set``. Raises ``BadYaml``.

    Texts are taken as they are. A list is written ``[a, b]``; one text stands for a list
    of one. Everything else, and every engine argument, is YAML.
    """
    if key is not None and key.kind in (Kind.TEXT, Kind.CHOICE):
        return None if key.optional and text in _NULLS else text
    if key is not None and key.kind is Kind.TEXTS and not text.lstrip().startswith("["):
        if "," in text:
            raise BadYaml("several texts are written as a list: '[a, b]'")
        return [text]
    document = Document(text)
    return None if document.root is None else document.value(document.root, key)


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
