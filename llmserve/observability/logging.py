"""Log lines on standard error, as text or as JSON, one line each whatever they contain."""

from __future__ import annotations

import json
import logging
import re
import sys
import time

from llmserve.settings import LoggingSettings

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class TextFormatter(logging.Formatter):
    """``12:00:00 INFO  llmserve.server: message``; control characters are escaped, so
    that a client cannot forge a line. A traceback keeps its lines, indented."""

    def format(self, record: logging.LogRecord) -> str:
        when = time.strftime("%H:%M:%S", time.localtime(record.created))
        line = f"{when} {record.levelname:<7} {record.name}: {escape(record.getMessage())}"
        if record.exc_info:
            trace = self.formatException(record.exc_info)
            line += "".join(f"\n    {escape(part)}" for part in trace.split("\n"))
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": record.created,
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=True)


def escape(text: str) -> str:
    """Control characters as their escapes."""
    return _CONTROL.sub(lambda match: repr(match[0])[1:-1], text)


def configure_logging(settings: LoggingSettings) -> None:
    """Send the log of this process to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if settings.format == "json" else TextFormatter())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("llmserve").setLevel(settings.level.upper())
    # By its level: other libraries configure logging later, and enable every logger again.
    access = logging.getLogger("llmserve.access")
    access.setLevel(logging.NOTSET if settings.access else logging.WARNING)
