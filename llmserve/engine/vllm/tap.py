"""The client half of a plain request: vLLM's outputs, without objects and without wake-ups
for every token.

vLLM makes two objects for each token, puts them into a collector and wakes a task up,
which hands the token through a chain of iterators. A plain request (one choice, no log
probabilities) needs of all that its text. A ``Tap`` stands where the collector was: while
its reader waits for the next piece, the text of a token goes straight from vLLM's output
processor to ``push``, which writes it to the client's connection, and nobody wakes up.
Whatever cannot go that way (the first piece, the last one, all of them while a client does
not keep up) is held for the reader, pieces put together.

The slow twins are ``RequestState.make_request_output`` and ``RequestOutputCollector`` in
vLLM; ``Metered.generate`` uses them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vllm.outputs import RequestOutput

from llmserve.engine.protocol import PushText
from llmserve.engine.vllm.steady import can_be_steady
from llmserve.engine.vllm.tally import Tally

if TYPE_CHECKING:
    from vllm.v1.engine import FinishReason
    from vllm.v1.engine.output_processor import RequestState


class Piece:
    """What came since the piece before it. ``finish_reason`` as vLLM names it."""

    __slots__ = ("finish_reason", "stop_reason", "text", "token_ids")

    def __init__(
        self,
        text: str,
        token_ids: list[int],
        finish_reason: str | None = None,
        stop_reason: int | str | None = None,
    ) -> None:
        self.text = text
        self.token_ids = token_ids
        self.finish_reason = finish_reason
        self.stop_reason = stop_reason


class Tap:
    """The outputs of one request. It counts them on ``tally``."""

    def __init__(self, tally: Tally) -> None:
        self.push: PushText | None = None
        """Takes the pieces that come while the reader waits, unless it returns false."""
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.created_tokens = 0
        """Prompt tokens put into the prefix cache."""
        self._state: Any = None
        self._next_text: Callable[[bool, bool], str]
        self.tally = tally
        self._held: Piece | None = None
        self._error: Exception | None = None
        self._waiting: asyncio.Future[None] | None = None

    def connect(self, state: RequestState) -> None:
        """Take the outputs of this request from now on."""
        assert state.detokenizer is not None
        self._state = state
        self._next_text = state.detokenizer.get_next_output_text
        state.make_request_output = self.take
        state.queue = self

    def take(
        self,
        new_token_ids: list[int],
        pooling_output: object,  # noqa: ARG002
        finish_reason: FinishReason | None,
        stop_reason: int | str | None,
        *_: object,
        **__: object,
    ) -> None:
        """In the place of ``RequestState.make_request_output``. Returns nothing, so there
        is nothing to collect."""
        if not new_token_ids and finish_reason is None:
            return  # Part of a long prompt, and no token yet.
        if new_token_ids:
            self.tally.add_new(self._state, len(new_token_ids))
        text = self._next_text(finish_reason is not None, True)
        if finish_reason is not None:
            self._hold(Piece(text, new_token_ids, str(finish_reason), stop_reason))
        elif not self._pushed(text, len(new_token_ids)):
            self._hold(Piece(text, new_token_ids))

    @property
    def can_be_steady(self) -> bool:
        """Whether its tokens are text and nothing more from now on."""
        return self._state is not None and can_be_steady(self._state.detokenizer)

    @property
    def stats(self) -> Any:
        """What vLLM counts for this request."""
        return self._state.stats

    def go_on(self, token_ids: list[int], now: float) -> None:
        """Take tokens that are text and nothing more (``steady``), which came at ``now``."""
        detokenizer = self._state.detokenizer
        detokenizer.token_ids.extend(token_ids)
        self.tally.add_more(len(token_ids), now)
        try:
            text = "".join(map(detokenizer.decode_next, token_ids))
        except Exception as error:
            self.put(error)
            return
        if not self._pushed(text, len(token_ids)):
            self._hold(Piece(text, token_ids))

    def _pushed(self, text: str, tokens: int) -> bool:
        if self.push is None or self._waiting is None or self._waiting.done():
            return False
        try:
            return self.push(text, tokens)
        except Exception as error:
            # This is vLLM's reader of all outputs: what goes wrong for one request here must
            # end that one, and would end the engine.
            self.put(error)
            return True

    def disconnect(self) -> None:
        """The request has ended. The two refer to each other: without this they would wait
        for the garbage collector."""
        if self._state is not None:
            self._state.make_request_output = self._state.queue = None
            self._state = None

    def take_whole(self, output: RequestOutput) -> None:
        """What came before this tap was connected."""
        self.tally.add(output)
        (choice,) = output.outputs
        self._count_prompt(output)
        self._hold(Piece(choice.text, choice.token_ids, choice.finish_reason, choice.stop_reason))

    def put(self, error: Exception) -> None:
        """In the place of ``RequestOutputCollector.put``, which gets errors as well."""
        self._error = error
        self._wake()

    async def get(self) -> Piece:
        """The next piece. Raises what the engine raises."""
        while self._held is None:
            if self._error is not None:
                raise self._error
            self._waiting = asyncio.get_running_loop().create_future()
            await self._waiting
        piece, self._held = self._held, None
        if self._state is not None and not self.prompt_tokens:
            self._count_prompt(self._state)
        return piece

    def _count_prompt(self, counted: Any) -> None:
        self.prompt_tokens = len(counted.prompt_token_ids or ())
        self.cached_tokens = counted.num_cached_tokens
        self.created_tokens = counted.num_cache_creation_tokens

    def _hold(self, piece: Piece) -> None:
        held = self._held
        if held is None:
            self._held = piece
        elif held.finish_reason is None:  # What comes after the end is nobody's.
            held.text += piece.text
            held.token_ids = [*held.token_ids, *piece.token_ids]
            held.finish_reason = piece.finish_reason
            held.stop_reason = piece.stop_reason
        self._wake()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)
