"""One request from begin to end. Whatever goes wrong becomes a kind of failure."""

from __future__ import annotations

import asyncio
import re
import time

from llmserve.loadtest.connection import Broken
from llmserve.loadtest.events import AnswerStream, BadStream
from llmserve.loadtest.figures import Record
from llmserve.loadtest.prompts import Prompt
from llmserve.loadtest.target import Target

CONNECT = "no connection"
TIMEOUT = "timeout"
CUT = "cut stream"
CLOSED = "closed without an answer"
EMPTY = "no token"
NO_STREAM = "not a stream of chunks"

_KEPT_OF_AN_ERROR = 4096
_MESSAGE = re.compile(r'"message"\s*:\s*"((?:[^"\\]|\\.)*)"')


class _Answer:
    """Reads a response: a stream if it is one, and some of the text of an error."""

    def __init__(self) -> None:
        self.status = 0
        self.stream = AnswerStream()
        self.said = bytearray()

    def begin(self, status: int, kind: str) -> None:
        self.status = status
        if status == 200 and not kind.startswith("text/event-stream"):
            raise BadStream(NO_STREAM, f"content type {kind or 'missing'}")

    def feed(self, now: float, data: bytes) -> None:
        if self.status == 200:
            self.stream.feed(now, data)
        elif len(self.said) < _KEPT_OF_AN_ERROR:
            self.said += data[:_KEPT_OF_AN_ERROR]

    def failure(self) -> tuple[str | None, str]:
        """Kind and detail of what is wrong with a response that has come to its end."""
        if self.status != 200:
            return f"HTTP {self.status}", _message(self.said.decode("utf-8", "replace"))
        if not self.stream.done:
            return CUT, "the stream ended without [DONE]"
        if not self.stream.arrivals:
            return EMPTY, "the stream held no token"
        return None, ""


async def exchange(target: Target, prompt: Prompt, record: Record, seconds: float) -> None:
    """Send a prompt now and fill ``record`` with what comes of it, within ``seconds``.
    Complete is an answer with status 200, a token, and ``[DONE]`` at its end.
    Raises nothing but cancellation."""
    request = target.request(prompt.text, prompt.answer_tokens)
    record.asked_tokens = prompt.answer_tokens
    answer = _Answer()
    record.sent = time.perf_counter()
    try:
        async with asyncio.timeout(seconds):
            await target.pool.ask(request, answer)
        record.failure, record.detail = answer.failure()
    except TimeoutError:
        record.failure, record.detail = TIMEOUT, f"not complete after {seconds:g} s"
    except BadStream as error:
        record.failure, record.detail = error.kind, _message(error.detail)
    except Broken as error:
        record.failure, record.detail = (CUT if answer.status == 200 else CLOSED), str(error)
    except OSError as error:
        record.failure, record.detail = CONNECT, str(error)
    record.end = time.perf_counter()
    record.arrivals = answer.stream.arrivals
    record.prompt_tokens = answer.stream.prompt_tokens
    record.output_tokens = answer.stream.output_tokens


def _message(said: str) -> str:
    """The sentence in an error's JSON, or the begin of whatever it is, on one line."""
    found = _MESSAGE.search(said)
    return " ".join((found[1] if found else said).split())[:300]
