"""The texts that are sent: made up, or from a ShareGPT file.

A prompt is a pure function of the seed and its number, so that two servers get the same ones
in the same order, whatever their pace. No two prompts begin alike unless they are meant to:
a prefix cache has nothing to find but the shared prefixes.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from llmserve.errors import ConfigError
from llmserve.loadtest.calibrate import Scale
from llmserve.loadtest.lengths import Lengths
from llmserve.loadtest.plan import Workload
from llmserve.loadtest.seeds import seeded

# Short and common, so that most tokenizers have one token for each.
_WORDS = """
time year people way day man thing woman life child world school state family student group
country problem hand part place case week company system program question work government
number night point home water room mother area money story fact month lot right study book
eye job word business issue side kind head house service friend father power hour game line
end member law car city community name president team minute idea kid body information back
parent face others level office door health person art war history party result change
morning reason research girl guy moment air teacher force education foot boy age policy
music sense nation plan college interest death experience effect use class control field
development role effort rate heart drug show leader light voice wife police mind price
report decision son view relationship town road arm difference value building action season
"""
WORDS: tuple[str, ...] = tuple(_WORDS.split())
_POOL_WORDS = 50_000
# As `vllm bench serve` sorts out what a ShareGPT file holds (vllm/benchmarks/datasets, 0.32).
_LEAST, _MOST_PROMPT, _MOST_TOTAL = 4, 1024, 2048


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request's text, and how many tokens may be answered."""

    text: str
    answer_tokens: int


class Prompts(Protocol):
    """A source of prompts without end. ``distinct`` is after how many they are sent again,
    ``None`` for never."""

    @property
    def distinct(self) -> int | None: ...

    def prompt(self, index: int) -> Prompt:
        """The prompt with this number."""


class Synthetic:
    """Common words in random order. ``scale`` counts in words."""

    def __init__(self, workload: Workload, answers: Lengths, scale: Scale, seed: int) -> None:
        self._workload = workload
        self._answers = answers
        self._scale = scale
        self._seed = seed
        self._pool = seeded(seed).choices(WORDS, k=_POOL_WORDS)
        self._prefixes = [self._prefix(group) for group in range(workload.prefix_groups)]
        self.distinct = None

    def prompt(self, index: int) -> Prompt:
        """The prompt with this number."""
        rng = seeded(self._seed, index)
        tokens = self._workload.prompts.draw(rng)
        answer = self._answers.draw(rng)
        prefix = ""
        if self._workload.prefix_tokens and rng.random() < self._workload.prefix_share:
            prefix = rng.choice(self._prefixes)
        words = self._scale.units(tokens)
        begin = numbered(index, words)
        return Prompt(prefix + " ".join(begin + self._cut(rng, words - len(begin))), answer)

    def _cut(self, rng: random.Random, words: int) -> list[str]:
        """Words from somewhere in the pool: much cheaper than drawing each of them."""
        place = rng.randrange(_POOL_WORDS)
        cut = self._pool[place : place + words]
        while len(cut) < words:
            cut += self._pool[: words - len(cut)]
        return cut

    def _prefix(self, group: int) -> str:
        words = max(round(self._workload.prefix_tokens / self._scale.per_unit), 0)
        rng = seeded(self._seed, "prefix", group)
        return "".join(f"{word} " for word in rng.choices(WORDS, k=words))


def numbered(index: int, most: int) -> list[str]:
    """At most ``most`` words that say a number, its last digits first: what makes the begin
    of a prompt its own."""
    words: list[str] = []
    while len(words) < min(most, 4):
        index, digit = divmod(index, len(WORDS))
        words.append(WORDS[digit])
    return words


class ShareGpt:
    """The conversations of a file: each one's first message is a prompt, and the length of
    the reply is how much may be answered. ``scale`` counts in characters."""

    def __init__(
        self, pairs: Sequence[tuple[str, str]], answers: Lengths | None, scale: Scale, seed: int
    ) -> None:
        self._seed = seed
        self._answers = answers
        self._prompts = [
            Prompt(prompt, answer)
            for prompt, reply in pairs
            if (answer := self._fits(prompt, reply, scale)) is not None
        ]
        if not self._prompts:
            raise ConfigError(
                f"--sharegpt: no conversation has a prompt of {_LEAST} to {_MOST_PROMPT} tokens "
                f"and, with its reply, at most {_MOST_TOTAL}."
            )
        seeded(seed).shuffle(self._prompts)

    @property
    def distinct(self) -> int:
        """How many there are."""
        return len(self._prompts)

    def prompt(self, index: int) -> Prompt:
        """The prompt with this number. After the last one they begin again."""
        found = self._prompts[index % len(self._prompts)]
        if self._answers is None:
            return found
        rng = seeded(self._seed, index)
        return Prompt(found.text, self._answers.draw(rng))

    def _fits(self, prompt: str, reply: str, scale: Scale) -> int | None:
        asked, answer = scale.tokens(len(prompt)), round(scale.tokens(len(reply)))
        if self._answers is not None:
            answer = max(round(self._answers.mean), _LEAST)
        fits = (
            asked >= _LEAST
            and answer >= _LEAST
            and asked <= _MOST_PROMPT
            and asked + answer <= _MOST_TOTAL
        )
        return answer if fits else None


def read_sharegpt(path: Path) -> list[tuple[str, str]]:
    """First message and reply of each conversation of a ShareGPT file. Raises
    ``ConfigError``."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"--sharegpt: {path} cannot be read: {error}") from None
    pairs = [_pair(each) for each in data] if isinstance(data, list) else []
    found = [pair for pair in pairs if pair is not None]
    if not found:
        raise ConfigError(
            f"--sharegpt: {path} holds no conversations; expected is a JSON list of objects, "
            'each with {"conversations": [{"value": …}, {"value": …}]}.'
        )
    return found


def _pair(entry: Mapping[str, Any] | Any) -> tuple[str, str] | None:
    match entry:
        case {"conversations": [{"value": str(prompt)}, {"value": str(reply)}, *_]}:
            return prompt, reply
    return None
