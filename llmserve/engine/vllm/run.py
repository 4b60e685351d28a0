"""One plain request in the engine, from its beginning to its end.

The slow twin is ``AsyncLLM.generate`` in vLLM; ``Metered.generate`` uses it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.exceptions import VLLMClientError
from vllm.sampling_params import SamplingParams
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from llmserve.engine.grammars import GrammarRefused
from llmserve.engine.vllm.tap import Piece, Tap
from llmserve.errors import Aborted, InternalError

if TYPE_CHECKING:
    from llmserve.engine.vllm.metered import Client


class Run:
    """A request that is in the engine for the time of a block, and counted there. It is
    aborted when the block ends in an error. Raises as ``AsyncLLM.generate`` does.

    A class and no generator, which would cost a request of one token more than it does.
    """

    __slots__ = ("_client", "_collector", "_id", "_params", "_request", "tap")

    tap: Tap

    def __init__(
        self, client: Client, request_id: str, prompt: Any, params: SamplingParams, options: Any
    ) -> None:
        self._client = client
        self._params = params
        self._request = request_id, prompt, options
        self._collector: Any = None
        self._id = ""

    async def __aenter__(self) -> Run:
        client = self._client
        request_id, prompt, options = self._request
        params = self._params
        tally = client.begin(request_id)
        self.tap = Tap(tally)
        try:
            await client.try_grammar(params)
            collector = await client.llm.add_request(tally.request_id, prompt, params, **options)
        except BaseException as error:
            client.end(tally, error)
            raise
        self._collector, self._id = collector, collector.request_id
        # The engine has the prompt now; a stream can be long.
        del self._request
        try:
            self._connect()
        except BaseException as error:
            await self.__aexit__(None, error, None)
            raise
        return self

    def _connect(self) -> None:
        """Let the tap have what comes, and what came already."""
        early = self._collector.get_nowait()
        if early is not None:
            self.tap.take_whole(early)
        state = self._client.llm.output_processor.request_states.get(self._id)
        if state is not None:
            self.tap.connect(state)

    async def next(self) -> Piece:
        """The next piece; the last one has a finish reason."""
        try:
            piece = await self.tap.get()
        except (EngineDeadError, VLLMClientError):
            raise
        except Exception as error:
            raise EngineGenerateError from error
        if piece.finish_reason is None and self.tap.can_be_steady:
            self._client.llm.steady.taps[self._id] = self.tap
        refuse_abort(piece.finish_reason, self._params)
        return piece

    async def __aexit__(self, _: object, error: BaseException | None, __: object) -> None:
        client = self._client
        client.llm.steady.taps.pop(self._id, None)
        try:
            if error is not None and not isinstance(error, EngineDeadError):
                await client.llm.abort(self._id, internal=True)
        finally:
            self.tap.disconnect()
            self._collector.close()
            client.end(self.tap.tally, error)


def refuse_abort(finish_reason: str | None, params: SamplingParams) -> None:
    """Raise for an output that vLLM calls finished although it failed."""
    if finish_reason == "abort":
        raise Aborted()
    if finish_reason == "error":
        if params.structured_outputs is not None:
            # So the engine core reports a grammar that does not compile, or that
            # has no token left to allow.
            raise GrammarRefused()
        raise InternalError()
