"""What one request in the engine has used, put on the meter of whoever sent it.

The sum over all meters equals vLLM's own counters, also of requests that are cut off at
any moment. vLLM counts a prompt when its first token comes out, and a token when its
output processor sees it, delivered or not; the state that the output processor keeps of a
request holds both numbers. (With several choices vLLM counts the prompt once for each of
them; the meter has it once.)
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

from llmserve.types import Meter

if TYPE_CHECKING:
    from vllm.outputs import PoolingRequestOutput, RequestOutput
    from vllm.v1.engine.output_processor import RequestState
    from vllm.v1.metrics.stats import RequestStateStats


class Observed(Protocol):
    """An engine client that shows the states of the requests it has taken on."""

    taken_on: dict[str, list[RequestState]]


class Tally:
    """One request of the engine."""

    def __init__(self, llm: Observed, request_id: str, meter: Meter) -> None:
        self.request_id = request_id
        self._llm = llm
        self._meter = meter
        self._started = time.monotonic()
        self._prompt_counted = False
        self._counted = 0

    def add(self, output: RequestOutput) -> None:
        """Count an output that holds what is new since the one before it."""
        tokens = _tokens(output)
        if not tokens:
            return
        self.add_prompt(output)
        if self._meter.first_token_at is None:
            self._meter.queue_seconds = _queue_seconds(output.metrics)
        self._counted += tokens
        self._meter.add_tokens(tokens, time.monotonic())

    def add_new(self, state: RequestState, tokens: int) -> None:
        """Count tokens that have just come, before they are told to anybody."""
        meter = self._meter
        if not self._prompt_counted:
            self._prompt_counted = True
            meter.prompt_tokens += state.prompt_len
            meter.cached_tokens += state.num_cached_tokens
            meter.queue_seconds = _queue_seconds(state.stats)
        self._counted += tokens
        meter.add_tokens(tokens, time.monotonic())

    def add_more(self, tokens: int, now: float) -> None:
        """Count tokens after the first ones, which came at ``now`` (``time.monotonic()``)."""
        self._counted += tokens
        self._meter.add_tokens(tokens, now)

    def add_whole(self, output: RequestOutput) -> None:
        """Count the one output of a request that wants no other: all tokens at once, at
        the end. The engine's own clock knows when they came."""
        tokens, meter, stats = _tokens(output), self._meter, output.metrics
        if not tokens:
            return
        self.add_prompt(output)
        self._counted += tokens
        meter.completion_tokens += tokens
        meter.last_token_at = time.monotonic()
        if stats is None:
            return
        meter.queue_seconds = _queue_seconds(output.metrics)
        if meter.first_token_at is None:
            meter.first_token_at = min(
                meter.last_token_at, self._started + stats.first_token_latency
            )
        if stats.num_generation_tokens > 1:
            gaps = stats.num_generation_tokens - 1
            meter.add_gaps(max(0.0, stats.last_token_ts - stats.first_token_ts) / gaps, gaps)

    def add_prompt(self, output: RequestOutput | PoolingRequestOutput) -> None:
        """Count the prompt, unless that was done."""
        if not self._prompt_counted:
            self._prompt_counted = True
            self._meter.prompt_tokens += len(output.prompt_token_ids or ())
            self._meter.cached_tokens += output.num_cached_tokens or 0

    def uncounted(self) -> int:
        """Tokens that the engine has generated and no output has told of."""
        states = self._llm.taken_on.get(self.request_id, ())
        return max(0, _generated(states) - self._counted)

    def close(self) -> None:
        """Count what the request used and its outputs did not say: it was cut off."""
        states = self._llm.taken_on.pop(self.request_id, [])
        begun = [state for state in states if _has_output(state)]
        if begun and not self._prompt_counted:
            self._meter.prompt_tokens += begun[0].prompt_len
            self._meter.cached_tokens += begun[0].num_cached_tokens
        self._meter.completion_tokens += max(0, _generated(states) - self._counted)


def _tokens(output: RequestOutput) -> int:
    return sum(len(choice.token_ids) for choice in output.outputs)


def _generated(states: list[RequestState] | tuple[()]) -> int:
    return sum(state.stats.num_generation_tokens for state in states if state.stats)


def _has_output(state: RequestState) -> bool:
    """Whether its prompt was read to the end. A generation that fails before its first
    token was not; pooling has no tokens."""
    if state.detokenizer is None:
        return not state.is_prefilling
    return bool(state.stats and state.stats.num_generation_tokens)


def _queue_seconds(stats: RequestStateStats | None) -> float | None:
    if stats is None or stats.scheduled_ts <= 0:
        return None
    return max(0.0, float(stats.scheduled_ts - stats.queued_ts))
