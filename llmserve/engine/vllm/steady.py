"""A token of a stream that is under way, from the engine core's message to the tap.

vLLM's loop over the outputs of a step is made for every kind of request: parsers, log
probabilities, stop strings, multi-token trims, pooling, tracing. A plain stream in its
middle needs three things done for a token: statistics, text, and to be sent. ``Steady``
stands before vLLM's loop, does these for the outputs of plain streams, and leaves it
everything else: first tokens, last ones, scheduling events, requests with stop strings.

The slow twin is ``OutputProcessor.process_outputs`` in vLLM;
``tests/unit/engine/test_vllm_steady.py`` compares texts, counts and statistics of both.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from vllm.v1.engine.detokenizer import FastIncrementalDetokenizer
from vllm.v1.engine.output_processor import OutputProcessor, OutputProcessorOutput

if TYPE_CHECKING:
    from vllm.v1.engine import EngineCoreOutput
    from vllm.v1.metrics.stats import IterationStats

    from llmserve.engine.vllm.tap import Tap


class Steady:
    """Stands before ``processor``'s own loop. ``taps``: those of the streams that are under
    way, by the id that the engine core knows."""

    def __init__(self, processor: OutputProcessor) -> None:
        self.taps: dict[str, Tap] = {}
        self._all = processor.process_outputs
        processor.process_outputs = self.process_outputs

    def process_outputs(
        self,
        engine_core_outputs: list[EngineCoreOutput],
        engine_core_timestamp: float | None = None,
        iteration_stats: IterationStats | None = None,
        weight_version: str | None = None,
    ) -> OutputProcessorOutput:
        """In the place of ``OutputProcessor.process_outputs``."""
        taps, now = self.taps, time.monotonic()
        rest = []
        for output in engine_core_outputs:
            tap = taps.get(output.request_id)
            if tap is None or not _is_nothing_but_tokens(output):
                rest.append(output)
                continue
            token_ids = output.new_token_ids
            if iteration_stats is not None:
                _count(tap.stats, iteration_stats, len(token_ids), engine_core_timestamp)
            tap.go_on(token_ids, now)
        if not rest:
            return OutputProcessorOutput(request_outputs=[], reqs_to_abort=[])
        return self._all(rest, engine_core_timestamp, iteration_stats, weight_version)


def _count(request: Any, step: Any, tokens: int, timestamp: float | None) -> None:
    """As ``IterationStats.update_from_output`` does for a request past its first token."""
    step.num_generation_tokens += tokens
    request.num_generation_tokens += tokens
    step.inter_token_latencies_iter.append(timestamp - request.last_token_ts)
    request.last_token_ts = timestamp


def _is_nothing_but_tokens(output: EngineCoreOutput) -> bool:
    return (
        bool(output.new_token_ids)
        and output.finish_reason is None
        and output.events is None
        and output.routed_experts is None
        and output.new_sampling_mask is None
        and not output.num_nans_in_logits
    )


def can_be_steady(detokenizer: Any) -> bool:
    """Whether a token is text and nothing more: a stop string needs the text before it."""
    return isinstance(detokenizer, FastIncrementalDetokenizer) and not detokenizer.stop
