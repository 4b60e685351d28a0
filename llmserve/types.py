"""The domain values that cross layer boundaries. All of them are frozen.

A value of one of these types is valid by construction: ``http`` parses and checks the
wire schema once, and nothing below it checks again (limits that only the engine knows,
such as the context length, are the engine's to enforce). No HTTP type and no vLLM type
appears here.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal


class FinishReason(StrEnum):
    """Why a choice ended. An abort is an error, never a finish reason."""

    STOP = "stop"
    LENGTH = "length"


class Outcome(StrEnum):
    """How a request ended. Every request ends in exactly one of them.

    ``completed``: the whole answer was delivered. ``invalid``: refused because of what
    the client sent (4xx). ``rejected``: refused because of the server's state before any
    work was done (429, 503). ``failed``: the engine or the server broke. ``timeout``: a
    deadline passed. ``cancelled``: it was ended on purpose (by ``DELETE
    /v1/requests/{id}``, by a shutdown). ``disconnected``: the client went away first.
    """

    COMPLETED = "completed"
    INVALID = "invalid"
    REJECTED = "rejected"
    FAILED = "failed"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    DISCONNECTED = "disconnected"


class Operation(StrEnum):
    """What the OpenAI face of an engine can be asked to do."""

    CHAT = "chat.completions"
    COMPLETION = "completions"
    RESPONSES = "responses"
    MESSAGES = "messages"
    COUNT_TOKENS = "messages.count_tokens"
    EMBEDDINGS = "embeddings"
    TOKENIZE = "tokenize"
    DETOKENIZE = "detokenize"


class Stage(StrEnum):
    """Where an engine is on its way to the first token, in this order."""

    STARTING = "starting"
    INSTALLING = "installing"
    IMPORTING = "importing"
    LOADING = "loading"
    COMPILING = "compiling"
    WARMING = "warming"
    READY = "ready"
    STALLED = "stalled"
    RESTARTING = "restarting"
    FAILED = "failed"
    STOPPED = "stopped"


START_STAGES = (
    *(Stage.STARTING, Stage.INSTALLING, Stage.IMPORTING, Stage.LOADING),
    *(Stage.COMPILING, Stage.WARMING, Stage.READY),
)
"""The stages of a start that goes well, in order; a stage may be skipped."""


@dataclass(frozen=True, slots=True)
class Message:
    """One chat message with plain text content."""

    role: Literal["system", "user", "assistant", "developer", "tool"]
    content: str


@dataclass(frozen=True, slots=True)
class Constraint:
    """A structured-output constraint; exactly one kind is given.

    ``json_schema`` is a JSON schema (an empty one means any JSON object), ``regex`` a
    regular expression that the whole output matches, ``choice`` the allowed outputs.
    """

    json_schema: Mapping[str, Any] | None = None
    regex: str | None = None
    choice: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen and when to stop. ``None`` means the model's own default.

    ``max_tokens`` ``None``: as many as the context has room for. ``logprobs``: how many
    alternatives to report for each token (0: the chosen token only; ``None``: none).
    ``logit_bias``: token id to bias, -100 to 100.
    """

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    n: int = 1
    logprobs: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    ignore_eos: bool = False
    constraint: Constraint | None = None


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One generation request in our own domain: exactly one of prompt and messages.

    ``adapter`` is the name of a LoRA adapter of the engine, or ``None`` for the base
    model. ``priority``: lower is served earlier, 0 is normal. ``cache_salt`` keeps its
    prefix cache apart from that of other salts.
    """

    id: str
    prompt: str | None = None
    messages: tuple[Message, ...] | None = None
    sampling: Sampling = Sampling()
    adapter: str | None = None
    priority: int = 0
    cache_salt: str | None = None


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A generated token, its log probability, and the likeliest alternatives."""

    token: str
    token_id: int
    logprob: float
    top: tuple[tuple[str, int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one choice produced since its previous chunk.

    ``text`` may be empty (a token that ends in the middle of a character); the
    concatenation of all deltas of a choice is its full text. ``token_ids`` are the ids
    behind this delta: count tokens with them, never by counting chunks. The last chunk
    of each choice carries ``finish_reason``, and ``stop_reason`` when a stop string or
    stop token ended it.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None


GAP_BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.015, 0.025, 0.05, 0.075, 0.1),
    *(0.15, 0.25, 0.5, 1.0, 2.5, 5.0, float("inf")),
)
"""Upper bounds, in seconds, by which a meter sorts the times between tokens."""


@dataclass(slots=True)
class Meter:
    """What a request has used so far. The engine writes it while the request runs, so it
    is right also when the request is cut off half-way. Times are ``time.monotonic()``
    seconds; ``gap_counts`` counts the times between tokens by ``GAP_BUCKETS``.

    The one mutable type here: it is the return channel for accounting, so that usage
    does not depend on a last chunk that a broken stream never delivers.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    queue_seconds: float | None = None
    first_token_at: float | None = None
    last_token_at: float | None = None
    gap_counts: list[int] = field(default_factory=lambda: [0] * len(GAP_BUCKETS))
    gap_seconds: float = 0.0
    live: Callable[[], int] | None = None
    """Tokens generated and not counted yet, of a request that reports them at its end."""

    @property
    def tokens_so_far(self) -> int:
        """Completion tokens, those that have not been reported yet included."""
        return self.completion_tokens + (self.live() if self.live is not None else 0)

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens

    def add_tokens(self, count: int, now: float) -> None:
        """``count`` tokens arrived together at ``now``; their gaps are equal shares of
        the time since the tokens before them."""
        if count <= 0:
            return
        self.completion_tokens += count
        last, self.last_token_at = self.last_token_at, now
        if last is None:
            self.first_token_at = now
            self.add_gaps(0.0, count - 1)
        else:
            # As add_gaps, without a call: this is done for every token.
            self.gap_counts[bisect_left(GAP_BUCKETS, (now - last) / count)] += count
            self.gap_seconds += now - last

    def add_gaps(self, seconds: float, count: int) -> None:
        """``count`` gaps between tokens of ``seconds`` each."""
        if count > 0:
            self.gap_counts[bisect_left(GAP_BUCKETS, seconds)] += count
            self.gap_seconds += seconds * count


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a loaded engine serves. ``name`` is what the engine itself calls the model,
    ``source`` where it came from; ``tasks`` are ``generate``, ``embed`` and so on;
    ``adapters`` the names of LoRA adapters that can be asked for; ``max_running`` how many
    sequences the engine runs together; ``chars_per_token`` the longest token in
    characters, by which a prompt is known to be too long before it is tokenized."""

    name: str
    source: str
    max_model_len: int
    tasks: frozenset[str]
    adapters: tuple[str, ...] = ()
    max_running: int = 256
    chars_per_token: int = 256


@dataclass(frozen=True, slots=True)
class Load:
    """What an engine is doing now. ``kv_cache_usage`` is a fraction, 0 to 1."""

    running: int
    waiting: int
    kv_cache_usage: float


class Scope(StrEnum):
    """What a key opens: generating text, reading metrics, running the server."""

    INFER = "infer"
    METRICS = "metrics"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one caller may use; ``None`` means no limit. Tokens are prompt and completion
    tokens together, ``concurrency`` counts requests that wait or run, a day is a UTC day."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None
    tokens_per_day: int | None = None


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sends a request. ``id`` is what usage is accounted under and ``name`` what
    people call it; both are safe to show and to log, neither is the key.

    ``models``: the names it may ask for (``None``: all). ``weight``: its share of a busy
    engine against that of others.
    """

    id: str = "anonymous"
    name: str = "anonymous"
    scopes: frozenset[Scope] = frozenset(Scope)
    models: frozenset[str] | None = None
    limits: Limits = Limits()
    weight: float = 1.0

    @property
    def is_anonymous(self) -> bool:
        return self.id == "anonymous"


ANONYMOUS = Caller()
