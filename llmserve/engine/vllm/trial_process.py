"""Compiles grammars on trial, in a process of its own that can be killed.

Reads one JSON object a line: first the tokenizer, then the grammars; writes one line for
each. A grammar is compiled as vLLM's engine core does it, and then followed for a few
tokens, because there are small grammars that cost seconds at every token.

``python -m llmserve.engine.vllm.trial_process`` ends when its standard input does, also in
the middle of a grammar.
"""

from __future__ import annotations

import json
import os
import queue
import resource
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import psutil
import xgrammar

_MEMORY = 3 * 2**30
_STEPS = 64
# vLLM parses a grammar on the server's event loop, and asks at each step of the engine core
# which tokens it allows: either holds up all requests.
_SLOWEST_SECONDS = 0.5
_PARSERS: dict[str, Callable[[str], Any]] = {
    "json": xgrammar.Grammar.from_json_schema,
    "regex": xgrammar.Grammar.from_regex,
    "structural_tag": xgrammar.Grammar.from_structural_tag,
}


class Bench:
    """The compiler for one tokenizer."""

    def __init__(self, tokenizer: str, *, compact: bool) -> None:
        self._tokenizer = xgrammar.TokenizerInfo.deserialize_json(tokenizer)
        self._compact = compact
        vocabulary = self._tokenizer.decoded_vocab
        self._by_length = sorted(
            range(len(vocabulary)), key=lambda token: len(vocabulary[token]), reverse=True
        )

    def judge(self, kind: str, grammar: str) -> str | None:
        """What is wrong with a grammar, or nothing."""
        begun = time.monotonic()
        _PARSERS[kind](grammar)
        seconds = time.monotonic() - begun
        if seconds > _SLOWEST_SECONDS:
            return f"takes {seconds:.1f} s to parse; at most {_SLOWEST_SECONDS} s"
        seconds = self._follow(xgrammar.GrammarMatcher(self._compile(kind, grammar)))
        if seconds > _SLOWEST_SECONDS:
            return f"takes {seconds:.1f} s for one token; at most {_SLOWEST_SECONDS} s"
        return None

    def _compile(self, kind: str, grammar: str) -> Any:
        """As vLLM does it, on one processor core."""
        compiler = xgrammar.GrammarCompiler(self._tokenizer, max_threads=1, cache_enabled=False)
        if kind == "regex":
            return compiler.compile_regex(grammar)
        if kind == "structural_tag":
            return compiler.compile_structural_tag(grammar)
        separators = (",", ":") if self._compact else None
        return compiler.compile_json_schema(
            grammar, any_whitespace=not self._compact, separators=separators
        )

    def _follow(self, matcher: Any) -> float:
        """Take the longest allowed token at each step: that is where texts that can be read
        in many ways multiply. Returns the slowest step in seconds."""
        mask = xgrammar.allocate_token_bitmask(1, self._tokenizer.vocab_size)
        slowest = 0.0
        for _ in range(_STEPS):
            begun = time.monotonic()
            matcher.fill_next_token_bitmask(mask)
            words = mask[0].tolist()
            slowest = max(slowest, time.monotonic() - begun)
            token = next((t for t in self._by_length if words[t >> 5] >> (t & 31) & 1), None)
            if token is None or slowest > _SLOWEST_SECONDS:
                break
            begun = time.monotonic()
            matcher.accept_token(token)
            slowest = max(slowest, time.monotonic() - begun)
            if matcher.is_terminated():
                break
        return slowest


def main() -> None:
    """Serve until standard input ends."""
    lines: queue.Queue[str] = queue.Queue(maxsize=2)
    threading.Thread(target=_read, args=(lines,), daemon=True).start()
    first = json.loads(lines.get())
    bench = Bench(first["tokenizer"], compact=first["compact"])
    _bound_memory()
    _say({})
    while True:
        asked = json.loads(lines.get())
        try:
            wrong = bench.judge(asked["kind"], asked["grammar"])
        except Exception:  # what the compiler refuses is vLLM's to report
            wrong = None
        _say({"wrong": wrong})


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def _bound_memory() -> None:
    """On top of what the libraries have mapped."""
    mapped = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (mapped + _MEMORY, mapped + _MEMORY))


def _read(lines: queue.Queue[str]) -> None:
    for line in sys.stdin:
        lines.put(line)
    os._exit(0)


if __name__ == "__main__":
    main()
