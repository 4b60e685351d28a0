"""Grammars are tried out before the engine core sees them.

The engine core compiles a grammar beside its work, but on the same processor cores, and
then follows it in the middle of each step: one grammar can slow down or stop all requests.
What ``http`` lets through is small; what is small and still may be dear is compiled here
first, in a process that is killed when it takes too long. Most grammars are plain and are
never tried, so most servers never start that process.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

from llmserve.engine.grammars import is_plain_regex, is_plain_schema
from llmserve.errors import Overloaded

_START_SECONDS = 120.0
_MOST_WAITING = 16
_MOST_KNOWN = 4096
_MAX_LINE = 2**20
_MODULE = "llmserve.engine.vllm.trial_process"

Kind: TypeAlias = Literal["json", "regex", "structural_tag"]


def to_be_tried(outputs: Any) -> tuple[Kind, str] | None:
    """The grammar in vLLM's ``StructuredOutputsParams``, unless it is plain."""
    if outputs.json:
        schema = json.loads(outputs.json) if isinstance(outputs.json, str) else outputs.json
        return None if is_plain_schema(schema) else ("json", json.dumps(schema))
    if outputs.regex:
        return None if is_plain_regex(outputs.regex) else ("regex", outputs.regex)
    if outputs.structural_tag:
        # The schemas of several tools may be one too many together.
        plain = is_plain_schema(json.loads(outputs.structural_tag))
        return None if plain else ("structural_tag", outputs.structural_tag)
    return None


class Trials:
    """Judges grammars, one at a time, and remembers what it found."""

    def __init__(self, tokenizer: Callable[[], str], *, compact: bool, seconds: float) -> None:
        """``tokenizer`` makes xgrammar's serialized tokenizer information; ``compact``:
        JSON without white space; ``seconds`` that a grammar may take."""
        self._tokenizer = tokenizer
        self._compact = compact
        self._seconds = seconds
        self._process: Process | None = None
        self._known: OrderedDict[bytes, str | None] = OrderedDict()
        self._turn = asyncio.Lock()
        self._waiting = 0

    async def wrong(self, kind: Kind, grammar: str) -> str | None:
        """What is wrong with a grammar that takes too long; nothing with most of them.
        Raises ``Overloaded`` when too many others are waiting to be tried."""
        key = hashlib.blake2b(f"{kind}\0{grammar}".encode("utf-8", "replace")).digest()
        if key in self._known:
            return self._known[key]
        if self._waiting >= _MOST_WAITING:
            raise Overloaded("Too many new grammars are waiting to be tried.")
        self._waiting += 1
        try:
            async with self._turn:
                if key in self._known:
                    return self._known[key]
                wrong = await self._judge(kind, grammar)
        finally:
            self._waiting -= 1
        self._known[key] = wrong
        if len(self._known) > _MOST_KNOWN:
            self._known.popitem(last=False)
        return wrong

    def close(self) -> None:
        """Kill the process, if there is one."""
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            process.kill()

    async def _judge(self, kind: Kind, grammar: str) -> str | None:
        process = self._process or await self._start()
        reply: dict[str, Any] | None = None
        try:
            async with asyncio.timeout(self._seconds):
                reply = await _ask(process, {"kind": kind, "grammar": grammar})
        except TimeoutError:
            return f"takes longer than {self._seconds:g} s to compile"
        finally:
            if reply is None:
                # It is in the middle of something; what it says next is not for us.
                self.close()
        if "died" in reply:
            self.close()
            return "takes too much memory to compile"
        wrong: str | None = reply["wrong"]
        return wrong

    async def _start(self) -> Process:
        tokenizer = await asyncio.to_thread(self._tokenizer)
        process = self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", _MODULE),
            stdin=PIPE,
            stdout=PIPE,
            stderr=DEVNULL,
            limit=_MAX_LINE,
            start_new_session=True,
        )
        ready = False
        try:
            async with asyncio.timeout(_START_SECONDS):
                reply = await _ask(process, {"tokenizer": tokenizer, "compact": self._compact})
            ready = "died" not in reply
        finally:
            if not ready:
                self.close()
        if not ready:
            raise RuntimeError("the process that tries grammars does not start")
        return process


async def _ask(process: Process, question: dict[str, Any]) -> dict[str, Any]:
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(question).encode() + b"\n")
        await process.stdin.drain()
        line = await process.stdout.readline()
    except (BrokenPipeError, ConnectionResetError):
        line = b""
    answer: dict[str, Any] = json.loads(line) if line else {"died": True}
    return answer
