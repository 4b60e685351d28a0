"""A reversible tokenizer whose ids need no table, and the text side of a stream.

An ASCII word, with the space before it, is cut into pieces of at most four characters;
their seven-bit codes packed together are the id. Everything else is one token for each
byte of its UTF-8, so a character can end in the middle of a token sequence, as with real
byte-level tokenizers.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator, Sequence

_PIECE = re.compile(r" ?[A-Za-z]+| ?[0-9]+|[\s\S]")
_PIECE_CHARS = 4
_BYTES = 256

EOS = _BYTES + (1 << 7 * _PIECE_CHARS)
"""Ends a reply; it has no text. All other ids are smaller."""

CHARS_PER_TOKEN = _PIECE_CHARS
"""No token has more characters."""

EOS_TEXT = "<|end|>"


def encode(text: str) -> list[int]:
    """Token ids of a text. ``decode`` gives the text back."""
    return [token for piece in _PIECE.findall(text) for token in _ids(piece)]


def tokens(text: str) -> Iterator[int]:
    """As ``encode``, one after the other: ten thousand waiting streams keep their texts,
    and not ten times as much in numbers, nor in a search that goes on."""
    at = 0
    while at < len(text):
        piece = _PIECE.match(text, at)[0]  # type: ignore[index]  # it matches anything
        at += len(piece)
        yield from _ids(piece)


def _ids(piece: str) -> Iterable[int]:
    if len(piece) == 1:
        # A lone surrogate (JSON can carry one) becomes a question mark.
        return piece.encode("utf-8", errors="replace")
    starts = range(0, len(piece), _PIECE_CHARS)
    return [_pack(piece[start : start + _PIECE_CHARS]) for start in starts]


def decode(ids: Iterable[int]) -> str:
    """The text of token ids; incomplete characters become U+FFFD."""
    return b"".join(map(token_bytes, ids)).decode("utf-8", errors="replace")


def token_bytes(token_id: int) -> bytes:
    """The bytes behind one id."""
    if token_id < _BYTES:
        return bytes([token_id])
    if token_id == EOS:
        return b""
    packed = token_id - _BYTES
    return bytes(code for shift in range(_PIECE_CHARS) if (code := packed >> 7 * shift & 0x7F) != 0)


def token_text(token_id: int) -> str:
    """How one token is shown: in log probabilities and by ``/tokenize``."""
    if token_id == EOS:
        return EOS_TEXT
    return token_bytes(token_id).decode("utf-8", errors="replace")


def _pack(piece: str) -> int:
    if len(piece) == 1:
        return ord(piece)
    return _BYTES + sum(ord(char) << 7 * place for place, char in enumerate(piece))


class TextStream:
    """Turns tokens into deltas that never hold a stop string nor the beginning of one.

    As vLLM does, it keeps back as many characters as the longest stop string has, less
    one, until the end is known.
    """

    __slots__ = ("_decoder", "_hold", "_pending", "_stop")

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = stop
        self._hold = max((len(string) for string in stop), default=1) - 1
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._pending = ""

    def push(self, token_id: int) -> tuple[str, str | None]:
        """The text that may be sent now, and the stop string that ended it, if one did."""
        self._pending += self._decoder.decode(token_bytes(token_id))
        found = [(at, s) for s in self._stop if (at := self._pending.find(s)) >= 0]
        if found:
            at, string = min(found)
            return self._pending[:at], string
        cut = max(0, len(self._pending) - self._hold)
        delta, self._pending = self._pending[:cut], self._pending[cut:]
        return delta, None

    def flush(self) -> str:
        """What was kept back. An unfinished character is dropped, as vLLM does."""
        rest, self._pending = self._pending, ""
        return rest
