"""Writing what a model says to wherever standard output goes."""

from __future__ import annotations

from typing import TextIO

# A terminal obeys control characters; a model must not be able to send it any.
_CONTROLS = {code: None for code in (*range(32), *range(127, 160)) if code not in (9, 10)}


class Output:
    """Text for one stream, flushed at once, harmless on a terminal and exact in a pipe."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.is_terminal = stream.isatty()
        self.at_line_start = True

    def write(self, text: str) -> None:
        """Write now; a consumer sees tokens as they come."""
        # JSON may carry half of a surrogate pair, which no encoding can write.
        text = text.encode("utf-8", "replace").decode()
        if self.is_terminal:
            text = printable(text)
        if text:
            self._stream.write(text)
            self._stream.flush()
            self.at_line_start = text.endswith("\n")

    def end_line(self) -> None:
        """Finish the line, if one has been begun."""
        if not self.at_line_start:
            self.write("\n")


def printable(text: str) -> str:
    """The text without control characters, line ends and tabs excepted."""
    return text.translate(_CONTROLS)
