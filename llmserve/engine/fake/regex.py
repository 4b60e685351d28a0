"""The shortest simple match of a regular expression.

Enough of the language for tests: literals, escapes, classes, groups, alternation and
counted repetition. Whatever does not come out right is refused by name.
"""

from __future__ import annotations

import re

from llmserve.errors import InvalidRequest

_ESCAPES = {"d": "0", "w": "a", "s": " ", "n": "\n", "t": "\t", "D": "a", "S": "a", "W": " "}
_SPECIAL = frozenset("|)")
_MAX_LENGTH = 10_000
_COUNT = re.compile(r"\{(\d+)(?:,\d*)?\}")


def matching(pattern: str) -> str:
    """A text that the whole pattern matches. Raises ``InvalidRequest`` otherwise."""
    text: str | None = None
    try:
        compiled = re.compile(pattern)
        text = _Reader(pattern.removeprefix("^").removesuffix("$")).alternatives()
    except re.error as error:
        raise InvalidRequest(
            f"{pattern!r} is not a regular expression: {error}.", param="regex"
        ) from None
    except (IndexError, OverflowError, RecursionError):
        text = None  # Outside of the small language of this module.
    if text is None or compiled.fullmatch(text) is None:
        raise InvalidRequest(
            f"The fake engine cannot produce a match of the regular expression {pattern!r}.",
            param="regex",
        )
    return text


class _Reader:
    """Reads a pattern once, left to right, and writes a match as it goes."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._at = 0

    def alternatives(self) -> str:
        """The first alternative of a group or of the whole pattern."""
        first = self._sequence()
        while self._peek() == "|":
            self._at += 1
            self._sequence()
        return first

    def _sequence(self) -> str:
        text = ""
        while (char := self._peek()) and char not in _SPECIAL:
            atom, count = self._atom(), self._count()
            if len(text) + len(atom) * count > _MAX_LENGTH:
                raise OverflowError
            text += atom * count
        return text

    def _atom(self) -> str:
        char = self._take()
        if char == "(":
            if self._pattern.startswith("?:", self._at):
                self._at += 2
            text = self.alternatives()
            self._take()
            return text
        if char == "[":
            return self._member()
        if char == "\\":
            escaped = self._take()
            return _ESCAPES.get(escaped, escaped)
        return "a" if char == "." else char

    def _member(self) -> str:
        """The first member of a class; a negated class is left to the final check."""
        first = self._take()
        if first == "\\":
            escaped = self._take()
            first = _ESCAPES.get(escaped, escaped)
        while self._take() != "]":
            pass
        return first

    def _count(self) -> int:
        char = self._peek()
        if char in ("*", "?", "+"):
            self._at += 1
            return 1 if char == "+" else 0
        if counted := _COUNT.match(self._pattern, self._at):
            self._at = counted.end()
            return int(counted.group(1))
        return 1

    def _peek(self) -> str:
        return self._pattern[self._at : self._at + 1]

    def _take(self) -> str:
        char = self._pattern[self._at]
        self._at += 1
        return char
