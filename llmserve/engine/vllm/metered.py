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
from llmserve.engine.vllm.tally import Tally
from llmserve.engine.vllm.tap import Piece, Tap, pieces
from llmserve.engine.vllm.tools import bound_spaces
from llmserve.engine.vllm.trial import to_be_tried
from llmserve.errors import Aborted, InternalError
from llmserve.types import Meter

if TYPE_CHECKING:
    from llmserve.engine.vllm.core import ObservedLLM


class Client:
    """An engine client for one request: counts its tokens and refuses to pass an abort
    off as an answer. Everything else is the wrapped client's."""

    def __init__(self, llm: ObservedLLM, meter: Meter) -> None:
        self._llm = llm
        self._meter = meter
        self._open: set[Tally] = set()
        self.failure: Exception | None = None
        """What ended the generation; vLLM's serving classes turn it into plain text."""
        meter.live = self._uncounted

    def __getattr__(self, name: str) -> Any:
        return getattr(self._llm, name)

    def plain(self) -> Plain | None:
        """A client for the same request that uses a tap, where the engine allows it."""
        if self._llm.output_processor.stream_interval != 1:
            return None
        return Plain(self._llm, self._meter)

    async def encode(
        self, prompt: Any, pooling_params: Any, request_id: str, **options: Any
    ) -> AsyncGenerator[PoolingRequestOutput, None]:
        """As ``AsyncLLM.encode``."""
        tally = Tally(self._llm, self._llm.unique(request_id), self._meter)
        stream = self._llm.encode(prompt, pooling_params, tally.request_id, **options)
        try:
            async with aclosing(stream) as outputs:
                async for output in outputs:
                    if output.finished:
                        tally.add_prompt(output)
                    yield output
        finally:
            tally.close()

    @contextmanager
    def _counted(self, request_id: str) -> Iterator[Tally]:
        """The tally of a generation, for its time; a failure is remembered."""
        tally = Tally(self._llm, self._llm.unique(request_id), self._meter)
        self._open.add(tally)
        try:
            yield tally
        except Exception as error:
            self.failure = error
            raise
        finally:
            self._open.discard(tally)
            tally.close()

    async def _try_grammar(self, params: SamplingParams) -> None:
        if params.structured_outputs is None or self._llm.trials is None:
            return
        grammar = to_be_tried(params.structured_outputs)
        if grammar is not None and (wrong := await self._llm.trials.wrong(*grammar)):
            raise GrammarRefused(f"it {wrong}.")

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
            await self._try_grammar(sampling_params)
            stream = self._llm.generate(prompt, sampling_params, tally.request_id, **options)
            async with aclosing(stream) as outputs:
                async for output in outputs:
                    if deltas:
                        tally.add(output)
                    elif output.finished:
                        tally.add_whole(output)
                    for choice in output.outputs:
                        _refuse_abort(choice.finish_reason, sampling_params)
                    yield output


class Plain(Client):
    """A client for one plain request: one choice, new text only, no log probabilities.
    What it generates are ``Piece``s."""

    tap: Tap

    async def generate(
        self, prompt: Any, sampling_params: SamplingParams, request_id: str, **options: Any
    ) -> AsyncGenerator[Piece, None]:
        """As ``Metered.generate``, through a tap."""
        _bound_spaces(sampling_params)
        with self._counted(request_id) as tally:
            await self._try_grammar(sampling_params)
            self.tap = Tap(tally)
            stream = pieces(
                self._llm, self.tap, prompt, sampling_params, tally.request_id, **options
            )
            async with aclosing(stream) as items:
                async for piece in items:
                    _refuse_abort(piece.finish_reason, sampling_params)
                    yield piece


def _bound_spaces(params: SamplingParams) -> None:
    constraint = params.structured_outputs
    if constraint is not None and constraint.structural_tag:
        constraint.structural_tag = bound_spaces(constraint.structural_tag)


def _refuse_abort(finish_reason: str | None, params: SamplingParams) -> None:
    """Raise for an output that vLLM calls finished although it failed."""
    if finish_reason == "abort":
        raise Aborted()
    if finish_reason == "error":
        if params.structured_outputs is not None:
            # So the engine core reports a grammar that does not compile, or that
            # has no token left to allow.
            raise GrammarRefused()
        raise InternalError()
