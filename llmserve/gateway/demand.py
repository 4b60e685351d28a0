"""What a request asks of the server besides its answer: room, time and a place in line."""

from __future__ import annotations

from dataclasses import dataclass

from llmserve.types import Limits

_LIKELY_ANSWER = 1024
BYTES_PER_TOKEN = 4
"""A token of English text is about four bytes. Only used until the engine has counted."""


@dataclass(frozen=True, slots=True)
class Demand:
    """``prompt_tokens`` is an estimate, ``max_tokens`` the most that all answers together
    may have. ``sequences``: how many the engine runs for it, prompts times choices.
    ``timeout_s``: how long it is willing to wait for the end.
    ``priority``: in seconds, see ``Admission.enter``."""

    prompt_tokens: int = 1
    max_tokens: int = 0
    sequences: int = 1
    timeout_s: float | None = None
    priority: float = 0.0

    bounded: bool = True
    """Whether the client itself said how long an answer may be."""

    def tokens(self, limits: Limits) -> int:
        """What to set aside for it. A budget must never be overspent; a rate evens out by
        itself, so there the guess is modest when the client has not said."""
        answer = self.max_tokens
        if not self.bounded and limits.tokens_per_day is None:
            answer = min(answer, _LIKELY_ANSWER * self.sequences)
        return self.prompt_tokens + answer


def estimate_tokens(body_bytes: int) -> int:
    """Prompt tokens in a request body of that size."""
    return max(1, body_bytes // BYTES_PER_TOKEN)
