"""One request inside the fake engine: its choices, and what each step of them gives."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from llmserve.engine.fake.constraint import constrained_text
from llmserve.engine.fake.script import WORDS, Script, pseudo_words
from llmserve.engine.fake.tokens import EOS, TextStream, encode, token_text, tokens
from llmserve.errors import InvalidRequest, PromptTooLong
from llmserve.types import Chunk, FinishReason, GenerateRequest, Message, Sampling, TokenLogprob

_VOCABULARY = tuple(dict.fromkeys(encode(f" {word}")[0] for word in WORDS))


class Choice:
    """One answer on its way: each ``step`` takes one token and gives its chunk."""

    __slots__ = ("_ends", "_key", "_limit", "_logprobs", "_text", "_tokens", "count", "index")

    def __init__(
        self,
        index: int,
        said: Iterator[int],
        limit: int,
        sampling: Sampling,
        key: str,
        *,
        ends: bool = True,
    ) -> None:
        self.index = index
        self.count = 0
        self._tokens = said
        self._ends = ends
        self._limit = limit
        self._logprobs = sampling.logprobs
        self._key = key
        self._text = TextStream(sampling.stop)

    def step(self) -> Chunk:
        """The next token. Not to be called after a chunk with a finish reason."""
        token = next(self._tokens, EOS)
        if token == EOS and not self._ends:
            self._tokens, self._ends = _endless(self._key), True
            token = next(self._tokens)
        self.count += 1
        text, stop = self._text.push(token)
        finish = None
        if stop is not None:
            finish = FinishReason.STOP
        elif token == EOS or self.count == self._limit:
            finish = FinishReason.STOP if token == EOS else FinishReason.LENGTH
            text += self._text.flush()
        return Chunk(self.index, text, (token,), finish, stop, self._scores(token))

    def _scores(self, token: int) -> tuple[TokenLogprob, ...] | None:
        if self._logprobs is None:
            return None
        seed = zlib.crc32(f"{self._key}\0{self.count}".encode(errors="replace"))
        logprob = -0.05 - seed % 100 / 100
        others = (
            other
            for place in range(len(_VOCABULARY))
            if (other := _VOCABULARY[(seed + place) % len(_VOCABULARY)]) != token
        )
        ids = itertools.islice(itertools.chain((token,), others), self._logprobs)
        top = tuple(
            (token_text(other), other, round(logprob - 0.7 * rank, 4))
            for rank, other in enumerate(ids)
        )
        return (TokenLogprob(token_text(token), token, round(logprob, 4), top),)


@dataclass(frozen=True, slots=True)
class Job:
    """A request that was checked. ``prompt`` is all rendered prompts together."""

    prompt: str
    prompt_tokens: int
    choices: tuple[Choice, ...]
    priority: int = 0


def plan_request(script: Script, request: GenerateRequest) -> Job:
    """Check a request of our own domain. Raises ``InvalidRequest``."""
    if request.messages is None:
        prompt, field = request.prompt or "", "prompt"
    else:
        prompt, field = render(request.messages), "messages"
    return plan(script, [prompt], request, field=field)


def plan(script: Script, prompts: Sequence[str], request: GenerateRequest, *, field: str) -> Job:
    """Check several prompts that share the sampling of ``request``; the choices of each
    prompt follow those of the one before it. ``field`` is named in errors."""
    if request.adapter is not None and request.adapter not in script.adapters:
        known = ", ".join(script.adapters) or "none"
        raise InvalidRequest(
            f"The adapter {request.adapter!r} does not exist. Loaded: {known}.", param="model"
        )
    limit = request.sampling.max_tokens
    if limit is not None and limit > script.max_model_len:
        raise InvalidRequest(
            f"max_tokens is {limit}; this model's context holds {script.max_model_len} tokens "
            "for prompt and answer together.",
            param="max_tokens",
        )
    choices: list[Choice] = []
    total = 0
    for prompt in prompts:
        size = len(encode(prompt))
        if size == 0:
            raise InvalidRequest(f"{field} must not be empty.", param=field)
        if size >= script.max_model_len:
            raise PromptTooLong(size, script.max_model_len, param=field)
        total += size
        room = script.max_model_len - size
        for nth in range(request.sampling.n):
            choices.append(_choice(script, prompt, request, room, len(choices), nth))
    return Job("\n".join(prompts), total, tuple(choices), request.priority)


def _choice(
    script: Script, prompt: str, request: GenerateRequest, room: int, index: int, nth: int
) -> Choice:
    sampling = request.sampling
    # Greedy decoding knows neither a seed nor a difference between the choices.
    variation = "" if sampling.temperature == 0 else f"{sampling.seed}\0{nth}"
    key = f"{variation}\0{request.adapter or ''}"
    limit = room if sampling.max_tokens is None else min(room, sampling.max_tokens)
    if sampling.constraint is not None:
        text = constrained_text(sampling.constraint, f"{key}\0{prompt}")
        return Choice(index, tokens(text), limit, sampling, f"{key}\0{prompt}")
    said = tokens(script.reply(prompt, key))
    ends = not sampling.ignore_eos
    return Choice(index, said, limit, sampling, f"{key}\0{prompt}", ends=ends)


def _endless(key: str) -> Iterator[int]:
    for word in pseudo_words(key):
        yield from tokens(word)


def render(messages: Iterable[Message]) -> str:
    """The chat template of the fake: a line for each message, then the assistant's turn."""
    return "".join(f"<|{m.role}|>{m.content}\n" for m in messages) + "<|assistant|>"
