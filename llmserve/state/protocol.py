"""What the server remembers between requests and restarts: keys and usage.

``Store`` is implemented over SQLite (one machine) and over PostgreSQL (several replicas);
one suite of tests holds both to this page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from llmserve.errors import LlmserveError
from llmserve.types import Caller, Limits, Outcome, Scope


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as the operator sees it; the key itself is kept nowhere. Times are Unix
    seconds. ``prefix`` is the beginning of the key, for people to recognise it by;
    ``models`` ``None`` means all of them."""

    id: str
    name: str
    prefix: str
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None
    scopes: frozenset[Scope] = frozenset({Scope.INFER})
    models: frozenset[str] | None = None
    limits: Limits = field(default_factory=Limits)
    weight: float = 1.0

    @property
    def caller(self) -> Caller:
        """Who a request with this key comes from."""
        return Caller(self.id, self.name, self.scopes, self.models, self.limits, self.weight)


@dataclass(frozen=True, slots=True)
class Credential:
    """A digest that opens for ``key`` until ``valid_until`` (``None``: as long as the key
    itself). A key has several of them for a while after it was rotated."""

    digest: bytes
    valid_until: float | None
    key: ApiKey


@dataclass(frozen=True, slots=True)
class UsageRow:
    """What one key used of one model on one UTC day (``2026-12-31``), for one outcome.
    ``cached_tokens`` are those of the prompt tokens that the prefix cache had."""

    day: str
    key_id: str
    model: str
    outcome: Outcome
    requests: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class BatchId:
    """Names a batch of usage: the writer, and a number that grows with each of its
    batches. The same batch is added once, however often it is sent: a commit whose
    answer got lost can be tried again without counting twice."""

    writer: str
    number: int


class Store(Protocol):
    """Keys and usage. Every method blocks, for some seconds at most, and may be called from
    any thread; each raises ``Unavailable`` when the store cannot be used, without changing
    anything. Its message is fit for clients; its ``__cause__`` is for the log."""

    def revision(self) -> int:
        """A number that changes whenever any key does, in whatever process. Cheap."""
        ...

    def keys(self) -> Sequence[ApiKey]:
        """All keys, revoked and expired ones as well, the oldest first."""
        ...

    def credentials(self) -> Sequence[Credential]:
        """Every digest with its key. Each key that was ever made has at least one."""
        ...

    def create_key(self, key: ApiKey, digest: bytes) -> None:
        """Raises ``InvalidRequest`` when a key that is not revoked has the same name."""
        ...

    def revoke_key(self, key_id: str, when: float) -> bool:
        """``False``: there is no such key, or it was revoked before."""
        ...

    def rotate_key(
        self, key_id: str, digest: bytes, prefix: str, old_valid_until: float | None
    ) -> bool:
        """Give the key a new digest. What opened for it until now does so until
        ``old_valid_until``; ``None``: no longer. ``False``: no such key, or revoked."""
        ...

    def add_usage(self, rows: Sequence[UsageRow], batch: BatchId | None = None) -> None:
        """Add all of it up, or nothing."""
        ...

    def usage(self, first_day: str, last_day: str, key_id: str | None) -> Sequence[UsageRow]:
        """Both days included; ordered by day, key, model, outcome. ``None``: of all keys."""
        ...

    def tokens_on(self, day: str) -> Mapping[str, int]:
        """Prompt and completion tokens of that day, by key."""
        ...

    def check(self) -> None:
        """Raises ``Unavailable``, with the reason, when nothing can be written now."""
        ...

    def close(self) -> None:
        """Idempotent; takes two seconds at most. Afterwards every other method raises
        ``Unavailable``."""
        ...


UNREACHABLE = "The state store cannot be reached."
"""All that a client hears: what a driver says names hosts, ports and files."""


def shown(error: Exception) -> str:
    """What a client may read of it."""
    return error.message if isinstance(error, LlmserveError) else UNREACHABLE


def for_log(error: Exception) -> str:
    """The error and what was behind it, on one line."""
    both = [error] if error.__cause__ is None else [error, error.__cause__]
    return " ".join(": ".join(str(each) or type(each).__name__ for each in both).split())
