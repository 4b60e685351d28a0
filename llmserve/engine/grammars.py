"""How large a grammar is, found out without compiling it.

A grammar that a request brings along is compiled for it and then walked at every token,
in the engine core, where all requests wait for it. Either can take minutes. What is
within these bounds was measured to hold the engine up for less than two seconds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llmserve.errors import InvalidRequest
from llmserve.settings import LimitSettings

_HUGE = 10**12
_QUANTIFIER = re.compile(r"\{(\d+)(,(\d*))?\}|[*+?]")
# What makes a regex dear is that a text can be read in several ways, all of which are kept
# in mind while it grows. Two things multiply it: a repeat without end of something that has
# one itself, and a class, which so many tokens of the vocabulary fit.
_NESTED_ENDLESS = 200
_PLAIN_STATES = 200
_PLAIN_NODES = 400
_PLAIN_LENGTHS = 3
_CLASS = 32


class GrammarRefused(Exception):
    """The engine cannot compile the grammar that constrains the output, or not in time."""

    def __init__(
        self, reason: str = "the engine cannot compile it, or nothing satisfies it."
    ) -> None:
        super().__init__(reason)


def check_schema(value: Any, path: str, limits: LimitSettings) -> None:
    """Bound the depth and the size of a JSON schema, and all regexes in it together."""
    size = states = 0
    for node, depth in _nodes(value):
        if depth > limits.max_schema_depth:
            raise InvalidRequest(
                f"{path} is nested more than {limits.max_schema_depth} levels deep; that is "
                "the limit.",
                param=path,
            )
        size += _weight(node)
        if size > limits.max_schema_nodes:
            raise InvalidRequest(
                f"{path} has more than {limits.max_schema_nodes} subschemas, properties and "
                "values (with minProperties and maxProperties, each property counts several "
                "times); that is the limit.",
                param=path,
            )
        for pattern in _patterns(node):
            states += check_regex(pattern, path, limits, before=states)


def check_regex(text: str, path: str, limits: LimitSettings, *, before: int = 0) -> int:
    """Bound a regular expression: how deep its groups are, and how many states it has when
    its counted repeats are written out, ``before`` aside. Returns the states."""
    states, depth, _ = measure(text)
    if depth > limits.max_schema_depth:
        raise InvalidRequest(
            f"{path} has a regular expression with groups {depth} levels deep; at most "
            f"{limits.max_schema_depth} are allowed.",
            param=path,
        )
    if before + states > limits.max_regex_states:
        shown = f"{before + states}" if states < _HUGE else "a huge number of"
        raise InvalidRequest(
            f"{path}: regular expressions come to {shown} states with their repeats written "
            "out (a repeat of something that varies in length counts many times); at most "
            f"{limits.max_regex_states} are allowed.",
            param=path,
        )
    return states


def is_plain_regex(text: str) -> bool:
    """Whether a regex that is within the bounds surely costs next to nothing."""
    states, _, plain = measure(text)
    return plain and states <= _PLAIN_STATES


def is_plain_schema(value: Any) -> bool:
    """Whether a schema that is within the bounds surely costs next to nothing. What costs
    is many properties, regexes, and each new pair of bounds on the length of a string."""
    lengths: set[tuple[Any, Any]] = set()
    size = states = 0
    for node, _ in _nodes(value):
        size += _weight(node)
        for pattern in _patterns(node):
            if not is_plain_regex(pattern):
                return False
            states += measure(pattern)[0]
        if isinstance(node, dict):
            lengths.add((str(node.get("minLength")), str(node.get("maxLength"))))
        if size > _PLAIN_NODES or states > _PLAIN_STATES or len(lengths) > _PLAIN_LENGTHS:
            return False
    return True


def count_nodes(value: Any) -> int:
    """How many subschemas, properties and values a schema has."""
    return sum(_weight(node) for node, _ in _nodes(value))


def _weight(node: Any) -> int:
    """1, or more where the compiler has to count properties while they are written."""
    properties = node.get("properties") if isinstance(node, dict) else None
    if not isinstance(properties, dict):
        return 1
    bounds = (node.get("minProperties"), node.get("maxProperties"))
    most = max((bound for bound in bounds if isinstance(bound, int)), default=0)
    return 1 + len(properties) * min(most, len(properties)) // 20


def _patterns(node: Any) -> list[str]:
    """The regular expressions of one schema."""
    if not isinstance(node, dict):
        return []
    pattern, named = node.get("pattern"), node.get("patternProperties")
    names = list(named) if isinstance(named, dict) else []
    return [*names, pattern] if isinstance(pattern, str) else names


def _nodes(value: Any) -> Iterator[tuple[Any, int]]:
    """Every schema, property name and value in a schema, with its depth. One level of
    nesting is one schema in another, which is two or three levels of JSON."""
    pending = [(value, 1)]
    while pending:
        node, depth = pending.pop()
        yield node, depth
        if isinstance(node, dict):
            for entry in node.values():
                pending.extend(_children(entry, depth))
        elif isinstance(node, list):
            pending.extend((entry, depth + 1) for entry in node)


def _children(entry: Any, depth: int) -> Iterator[tuple[Any, int]]:
    if isinstance(entry, dict):
        yield entry, depth + 1
    elif isinstance(entry, list):
        yield from ((item, depth + 1) for item in entry)


@dataclass(slots=True)
class _Part:
    """A piece of a regex: how many ``states`` it has, its ``size`` when nothing is counted
    more than once, whether what it matches varies in
    length, has no end, is counted to a varying number, and has a class in it (that has
    not been weighed yet)."""

    states: int = 1
    size: int = 1
    varies: bool = False
    endless: bool = False
    counted: bool = False
    classes: bool = False
    plain: bool = True

    def repeat(self, times: int, *, varies: bool, endless: bool) -> None:
        """This part, so many times."""
        self.plain &= not self.varies
        self.size = min(_HUGE, self.size * times)
        if self.varies and times > 1:
            self._weigh(self.states * times * times)
        elif endless and self.counted:
            self._weigh(self.states * self.states)
        else:
            self.states = min(_HUGE, self.states * times)
        if endless and self.endless:
            self.states = min(_HUGE, self.states * _NESTED_ENDLESS)
        self.varies |= varies
        self.endless |= endless
        self.counted |= varies and times > 1

    def _weigh(self, states: int) -> None:
        weighed = states * (_CLASS if self.classes else 1)
        self.states, self.classes = min(_HUGE, max(self.states, weighed)), False


@dataclass(slots=True)
class _Group:
    """A group while it is read: its finished branches, and the parts of the branch at hand."""

    whole: _Part
    branches: int = 0
    branch: int = 0
    size: int = 0
    overlapping: int = 0

    def add(self, part: _Part) -> None:
        self.branch = min(_HUGE, self.branch + part.states)
        self.size += part.size
        if part.counted:
            self.overlapping += 1
        self.whole.varies |= part.varies
        self.whole.endless |= part.endless
        self.whole.counted |= part.counted
        self.whole.classes |= part.classes
        self.whole.plain &= part.plain

    def end_branch(self) -> None:
        states = self.branch
        if self.overlapping > 1:
            # None of several counted repeats in a row knows where the others end.
            weight = _CLASS if self.whole.classes else 1
            states = max(states, self.size * self.size // 4 * weight)
        self.whole.states = min(_HUGE, self.whole.states + states)
        self.whole.size = min(_HUGE, self.whole.size + self.size)
        self.branches += 1
        self.branch = self.size = self.overlapping = 0

    def close(self) -> _Part:
        self.end_branch()
        self.whole.varies |= self.branches > 1
        return self.whole


def measure(text: str) -> tuple[int, int, bool]:
    """The states of a regex, the depth of its groups, and whether it is plain: nothing that
    varies in length is repeated. Its syntax is not checked: what is malformed is refused by
    the compiler, in its own words."""
    groups, at, deepest = [_group()], 0, 0
    while at < len(text):
        if text[at] == "(":
            groups.append(_group())
            deepest = max(deepest, len(groups) - 1)
            at += 1
        elif text[at] == "|":
            groups[-1].end_branch()
            at += 1
        elif text[at] == ")" and len(groups) > 1:
            part = groups.pop().close()
            at = _repeat(part, text, at + 1)
            groups[-1].add(part)
        else:
            part, at = _atom(text, at)
            at = _repeat(part, text, at)
            groups[-1].add(part)
    while len(groups) > 1:
        part = groups.pop().close()
        groups[-1].add(part)
    whole = groups[0].close()
    return whole.states, deepest, whole.plain


def _group() -> _Group:
    return _Group(_Part(states=0, size=0))


def _atom(text: str, at: int) -> tuple[_Part, int]:
    """The character, escape or class at ``at``, and where it ends."""
    if text[at] == "\\":
        return _Part(classes=text[at + 1 : at + 2].isalpha()), at + 2
    if text[at] != "[":
        return _Part(classes=text[at] == "."), at + 1
    at += 2 if text[at + 1 : at + 2] == "^" else 1
    while at < len(text) and text[at] != "]":
        at += 2 if text[at] == "\\" else 1
    return _Part(classes=True), at + 1


def _repeat(part: _Part, text: str, at: int) -> int:
    """Apply the quantifiers at ``at`` to the part before them; returns where they end."""
    while found := _QUANTIFIER.match(text, at):
        at = found.end()
        low, ranged, high = found[1], found[2], found[3]
        part.repeat(
            max(1, _number(low), _number(high)),
            varies=low is None or (ranged is not None and low != high),
            endless=found[0] in "*+" or ranged == ",",
        )
    return at


def _number(digits: str | None) -> int:
    digits = (digits or "0").lstrip("0") or "0"
    return _HUGE if len(digits) > 12 else int(digits)
