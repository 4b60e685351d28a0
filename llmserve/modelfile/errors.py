"""What can be wrong with a model file, as exceptions.

    LlmserveError
    └── ModelFileError          422  something is wrong with the file
        ├── Malformed               not what its format asks for; reading cannot go on
        ├── Refused                 readable, and not opened on purpose
        ├── UnknownFormat           nothing that is known here
        └── Unreadable              the system would not give the bytes

Messages name files as the caller knows them (a file name, or a path inside the model's
folder), never where they lie on the machine.
"""

from __future__ import annotations

from llmserve.errors import LlmserveError


class ModelFileError(LlmserveError):
    """A model file cannot be described. ``file`` is its name, relative to the model."""

    status = 422
    type = "model_file_error"
    code = "bad_model_file"

    def __init__(self, message: str, *, file: str) -> None:
        super().__init__(message)
        self.file = file


class Malformed(ModelFileError):
    """``where`` is the place in the file (an offset in bytes and what stands there), and
    ``expected`` what should have been found."""

    code = "malformed_model_file"

    def __init__(self, file: str, where: str, expected: str, found: str = "") -> None:
        message = f"{file} is malformed at {where}: expected {expected}"
        super().__init__(f"{message}, found {found}." if found else f"{message}.", file=file)
        self.where = where
        self.expected = expected
        self.found = found


class Refused(ModelFileError):
    """The file is not opened on purpose: it would execute code (``reason`` names how), is
    no regular file, or lies outside the folder that may be read."""

    code = "refused_model_file"

    def __init__(self, file: str, reason: str) -> None:
        super().__init__(f"{file} is refused: {reason}.", file=file)
        self.reason = reason


class UnknownFormat(ModelFileError):
    """``first`` are the file's first bytes (16 of them are shown)."""

    code = "unknown_model_format"

    def __init__(self, file: str, first: bytes, hint: str = "") -> None:
        start = first[:16]
        shown = f"{start.hex(' ')} ({ascii(start)[2:-1]})" if start else "nothing: it is empty"
        message = (
            f"{file} is no model file of a known format (GGUF, SafeTensors, APR)."
            f" It begins with {shown}.{f' {hint}.' if hint else ''}"
        )
        super().__init__(message, file=file)
        self.first = first


class Unreadable(ModelFileError):
    """The operating system refused, or the file is gone."""

    code = "unreadable_model_file"
