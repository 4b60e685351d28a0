"""Engine clients that count: one for each request, around the one ``AsyncLLM``.

Every generation goes through one of them, ours and that of vLLM's own serving classes, so
tokens are counted in one place whatever the protocol, and also for requests that are cut
off.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING, Any

from vllm.outputs import PoolingRequestOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

from llmserve.engine.grammars import GrammarRefused
from llmserve.engine.vllm.run import Run, refuse_abort
from llmserve.engine.vllm.tally import Tally
from llmserve.engine.vllm.tap import Piece, Tap
from llmserve.engine.vllm.tools import bound_spaces
from llmserve.engine.vllm.trial import to_be_tried
from llmserve.types import Meter

if TYPE_CHECKING:
    from llmserve.engine.vllm.core import ObservedLLM


class Client:
    """An engine client for one request: counts its tokens and refuses to pass an abort
    off as an answer. Everything else is the wrapped client's."""

    def __init__(self, llm: ObservedLLM, meter: Meter) -> None:
        self.llm = llm
        self._meter = meter
        self._open: set[Tally] = set()
        self.failure: Exception | None = None
        """What ended the generation; vLLM's serving classes turn it into plain text."""
        meter.live = self._uncounted

    def __getattr__(self, name: str) -> Any:
        return getattr(self.llm, name)

    def plain(self) -> Plain | None:
        """A client for the same request that uses a tap, where the engine allows it."""
        if self.llm.output_processor.stream_interval != 1:
            return None
        return Plain(self.llm, self._meter)

    async def encode(
        self, prompt: Any, pooling_params: Any, request_id: str, **options: Any
    ) -> AsyncGenerator[PoolingRequestOutput, None]:
        """As ``AsyncLLM.encode``."""
        tally = Tally(self.llm, self.llm.unique(request_id), self._meter)
        stream = self.llm.encode(prompt, pooling_params, tally.request_id, **options)
        try:
            async with aclosing(stream) as outputs:
                async for output in outputs:
                    if output.finished:
                        tally.add_prompt(output)
                    yield output
        finally:
            tally.close()

    def begin(self, request_id: str) -> Tally:
        """The tally of a generation; ``end`` it."""
        tally = Tally(self.llm, self.llm.unique(request_id), self._meter)
        self._open.add(tally)
        return tally

    def end(self, tally: Tally, error: BaseException | None) -> None:
        """The generation is over; a failure is remembered."""
        if isinstance(error, Exception):
            self.failure = error
        self._open.discard(tally)
        tally.close()

    async def try_grammar(self, params: SamplingParams) -> None:
        """Raises ``GrammarRefused`` for one that takes too much."""
        if params.structured_outputs is None or self.llm.trials is None:
            return
        grammar = to_be_tried(params.structured_outputs)
        if grammar is not None and (wrong := await self.llm.trials.wrong(*grammar)):
            raise GrammarRefused(f"it {wrong}.")

    @contextmanager
    def _counted(self, request_id: str) -> Iterator[Tally]:
        tally = self.begin(request_id)
        try:
            yield tally
        except BaseException as error:
            self.end(tally, error)
            raise
        self.end(tally, None)

    def _uncounted(self) -> int:
        return sum(tally.uncounted() for tally in self._open)


class Metered(Client):
    """A client for any request."""

    async def generate(
        self, prompt: Any, sampling_params: SamplingParams, request_id: str, **options: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        """As ``AsyncLLM.generate``. Raises ``Aborted`` and ``InternalError`` where vLLM
        yields an output with the finish reason ``abort`` or ``error``."""
        _bound_spaces(sampling_params)
        deltas = sampling_params.output_kind is RequestOutputKind.DELTA
        with self._counted(request_id) as tally:
            await self.try_grammar(sampling_params)
            stream = self.llm.generate(prompt, sampling_params, tally.request_id, **options)
            async with aclosing(stream) as outputs:
                async for output in outputs:
                    if deltas:
                        tally.add(output)
                    elif output.finished:
                        tally.add_whole(output)
                    for choice in output.outputs:
                        refuse_abort(choice.finish_reason, sampling_params)
                    yield output


class Plain(Client):
    """A client for one plain request: one choice, new text only, no log probabilities.
    What it generates are ``Piece``s."""

    tap: Tap

    def run(
        self, prompt: Any, sampling_params: SamplingParams, request_id: str, **options: Any
    ) -> Run:
        """The request, to be entered."""
        _bound_spaces(sampling_params)
        return Run(self, request_id, prompt, sampling_params, options)

    async def generate(
        self, prompt: Any, sampling_params: SamplingParams, request_id: str, **options: Any
    ) -> AsyncGenerator[Piece, None]:
        """As ``Metered.generate``, through a tap."""
        async with self.run(prompt, sampling_params, request_id, **options) as run:
            self.tap = run.tap
            finish_reason = None
            while finish_reason is None:
                piece = await run.next()
                finish_reason = piece.finish_reason
                yield piece


def _bound_spaces(params: SamplingParams) -> None:
    constraint = params.structured_outputs
    if constraint is not None and constraint.structural_tag:
        constraint.structural_tag = bound_spaces(constraint.structural_tag)
