"""What a fake engine does: its replies, its pace and its failures."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from llmserve.errors import InternalError, LlmserveError
from llmserve.types import Stage


@dataclass(frozen=True, slots=True)
class Reply:
    """Answers every prompt that contains ``when`` (an empty one: every prompt).

    ``text`` is the answer, or a function of the rendered prompt that returns it;
    ``None`` from the function leaves the prompt to the next rule.
    """

    when: str
    text: str | Callable[[str], str | None]


@dataclass(frozen=True, slots=True)
class Script:
    """The whole behaviour of one fake engine. Times are seconds.

    Replies: the first matching rule of ``replies``, else ``reply_words`` words made from
    prompt, adapter and seed (temperature 0 ignores the seed).

    Pace: ``prefill_seconds`` before the first token of a request, ``seconds_per_token``
    for each step; 0 is as fast as possible, still giving way to the event loop at every
    token. ``max_running`` requests run at once, the others wait in order of priority and
    arrival. The batch does not slow its members down.

    Failures: the first ``failing_starts`` starts raise ``start_error``; the engine dies
    after ``die_after_tokens`` tokens in all; a request whose prompt contains ``fail_on``
    (``stall_on``) fails (stalls until it is aborted) after ``fail_after_tokens``
    (``stall_after_tokens``) tokens of each choice.
    """

    model: str = "fake"
    max_model_len: int = 4096
    tasks: frozenset[str] = frozenset({"generate"})
    adapters: tuple[str, ...] = ()
    embedding_size: int = 32

    replies: tuple[Reply, ...] = ()
    reply_words: int = 48

    seconds_per_token: float = 0.0
    prefill_seconds: float = 0.0
    max_running: int = 64
    kv_capacity_tokens: int = 65_536

    stages: tuple[tuple[Stage, float], ...] = (
        (Stage.IMPORTING, 0.0),
        (Stage.LOADING, 0.0),
        (Stage.WARMING, 0.0),
    )
    failing_starts: int = 0
    start_error: type[LlmserveError] = InternalError
    die_after_tokens: int | None = None
    fail_on: str | None = None
    fail_after_tokens: int = 0
    stall_on: str | None = None
    stall_after_tokens: int = 0

    def reply(self, prompt: str, key: str) -> str:
        """The answer to a rendered prompt. ``key`` tells apart what sampling would."""
        for rule in self.replies:
            if rule.when not in prompt:
                continue
            text = rule.text if isinstance(rule.text, str) else rule.text(prompt)
            if text is not None:
                return text
        return "".join(itertools.islice(pseudo_words(f"{key}\0{prompt}"), self.reply_words)) + "."


# Some words are not ASCII: their characters span several tokens, so that chunks without
# text occur here as they do with a real tokenizer.
_WORDS = """
the a one this every small large quiet early patient naïve 東京 café
server model token stream request river garden window answer über 🙂
holds sends takes gives finds counts reads waits returns and then while because
slowly twice again never often almost together
"""
WORDS = tuple(_WORDS.split())


def pseudo_words(key: str) -> Iterator[str]:
    """Words without end, the same for the same key in every process."""
    for block in itertools.count():
        digest = hashlib.blake2b(f"{block}\0{key}".encode(errors="replace")).digest()
        for position, byte in enumerate(digest):
            word = WORDS[byte % len(WORDS)]
            yield word.capitalize() if block == position == 0 else f" {word}"
