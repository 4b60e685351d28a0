"""The per-token half of plain streams, without an object model for every token.

vLLM's serving classes make three pydantic objects for each token, run a parser that has
nothing to find over the whole text so far, and write JSON that we would have to read
again. For a stream that is nothing but text (one choice, no tools, no reasoning, no log
probabilities, no echo) ``ChatStream`` and ``CompletionStream`` give the same events
straight from the pieces of a ``Tap``. Most of them they never see: once a stream has
begun, the tap pushes text, and a template makes it an event.

There are two callers. ``direct.Direct.answer`` asks for the ``events`` of a request that
has passed vLLM's serving classes by. ``face._by_vllm`` has ``make_lean`` look at every other
chat or completion stream: there vLLM's serving class validates, renders, chooses the
sampling and starts, and if the request is plain, ``generate`` stands in the place of the
class's own generator.

The slow twins are ``chat_completion_stream_generator`` and ``completion_stream_generator``
in vLLM; ``tests/contract/test_lean.py`` compares the events of both.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import msgspec
from vllm.parser.abstract_parser import DelegatingParser, Parser

from llmserve.engine.protocol import Context, Event, Json, PushJson, PushText
from llmserve.engine.vllm.metered import Plain
from llmserve.engine.vllm.tap import Piece, Tap
from llmserve.types import Operation

_MARK = "\0text\0"
_encode = msgspec.json.Encoder().encode


def make_lean(operation: Operation, serving: Any, request: Any, context: Context) -> None:
    """Give this request's copy of a serving class the lean generator and a client that goes
    with it, when the request is plain enough. ``request`` is vLLM's own, validated, and
    wants a stream."""
    kind: type[ChatStream | CompletionStream]
    if operation is Operation.CHAT and is_plain_chat(serving, request):
        kind, replaced = ChatStream, "chat_completion_stream_generator"
    elif operation is Operation.COMPLETION and is_plain_completion(serving, request):
        kind, replaced = CompletionStream, "completion_stream_generator"
    else:
        return
    client = serving.engine_client.plain()
    if client is not None:
        serving.engine_client = client
        shape = shape_of(serving, request, context)
        setattr(serving, replaced, kind(shape, client).generate)


def is_plain_chat(serving: Any, request: Any) -> bool:
    """Whether the answer to a chat request is one text and nothing else."""
    return (
        _is_plain(serving, request)
        and not request.tools
        and not request.logprobs
        and not request.return_prompt_text
        and not serving.enable_log_outputs
        and finds_tool_calls_only(serving.parser_cls)
    )


def finds_tool_calls_only(parser: type[Parser] | None) -> bool:
    """Whether the parser has nothing to find where no tools are offered: a reasoning
    parser has, and so has one that reads the text in a way of its own."""
    return parser is None or (
        issubclass(parser, DelegatingParser)
        and parser.reasoning_parser_cls is None
        and parser.parse is DelegatingParser.parse
        and parser.parse_delta is DelegatingParser.parse_delta
    )


def is_plain_completion(serving: Any, request: Any) -> bool:
    """Whether the answer to a completion request is one text and nothing else."""
    prompt = request.prompt
    one = isinstance(prompt, str) or (isinstance(prompt, list) and isinstance(prompt[0], int))
    return _is_plain(serving, request) and one and request.logprobs is None


def _is_plain(serving: Any, request: Any) -> bool:
    options = request.stream_options
    return (
        (request.n or 1) == 1
        and not request.echo
        and not request.return_token_ids
        and not (options and options.continuous_usage_stats)
        and not request.stream_interval
        and not request.prompt_logprobs
        and not request.use_beam_search
        and not serving.enable_force_include_usage
        and not serving.enable_per_request_metrics
    )


@dataclass(frozen=True, slots=True)
class Shape:
    """What an answer carries besides its text. ``skips_empty``: a parser of vLLM's says
    nothing where there is no text."""

    model: str
    role: str
    fingerprint: str | None
    usage_asked: bool
    cached_shown: bool
    skips_empty: bool
    push: PushJson | None


def shape_of(serving: Any, request: Any, context: Context) -> Shape:
    """Of the answer of a serving class of vLLM's to a request of its own."""
    options = request.stream_options
    return Shape(
        model=context.model,
        role=serving.get_chat_request_role(request) if hasattr(request, "messages") else "",
        fingerprint=serving.system_fingerprint,
        usage_asked=bool(options and options.include_usage),
        cached_shown=serving.enable_prompt_tokens_details,
        skips_empty=getattr(serving, "parser_cls", None) is not None,
        push=context.push,
    )


class _Stream:
    """What both protocols share. Its iterators raise what the engine raises."""

    def __init__(self, shape: Shape, client: Plain) -> None:
        self._shape = shape
        self._client = client
        self._completion_tokens = 0

    def _head(self, request_id: str, kind: str, created: int) -> Json:
        return {"id": request_id, "object": kind, "created": created, "model": self._shape.model}

    def _details(self, tap: Tap) -> Json:
        """What the prefix cache had of the prompt."""
        return {"cached_tokens": tap.cached_tokens}

    def _usage(self) -> Json:
        tap = self._client.tap
        usage: Json = {
            "prompt_tokens": tap.prompt_tokens,
            "total_tokens": tap.prompt_tokens + self._completion_tokens,
            "completion_tokens": self._completion_tokens,
        }
        details = self._details(tap) if self._shape.cached_shown else {}
        if details := {name: value for name, value in details.items() if value is not None}:
            usage["prompt_tokens_details"] = details
        return usage

    def _end(self, head: Json) -> Event:
        end = head | {"choices": [], "usage": self._usage()}
        if self._shape.fingerprint is not None:
            end["system_fingerprint"] = self._shape.fingerprint
        return Event(end)

    async def _events(
        self,
        pieces: AsyncGenerator[Piece, None],
        head: Json,
        first: Json | None,
        body_of: Callable[[str], Json],
    ) -> AsyncGenerator[Event, None]:
        begun, push = False, self._pusher(head, body_of)
        async with aclosing(pieces):
            async for piece in pieces:
                if not begun:
                    begun = True
                    if first is not None:
                        yield Event(head | {"choices": [first]})
                    self._client.tap.push = push
                # Whoever asks for the next event has sent the one before it: where the short
                # way is open, a text that waited here can take it too.
                count, last = len(piece.token_ids), piece.finish_reason is not None
                if push is not None and not last and push(piece.text, count):
                    continue
                self._completion_tokens += count
                if piece.text or last or not self._shape.skips_empty:
                    yield self._event(head, body_of(piece.text), piece)
        if self._shape.usage_asked:
            yield self._end(head)

    def _event(self, head: Json, body: Json, piece: Piece) -> Event:
        frame = head | {"choices": [body]}
        if piece.finish_reason is not None:
            body["finish_reason"] = piece.finish_reason
            if piece.stop_reason is not None:
                body["stop_reason"] = piece.stop_reason
            if self._shape.fingerprint is not None and not self._shape.usage_asked:
                frame["system_fingerprint"] = self._shape.fingerprint
        return Event(frame)

    def _pusher(self, head: Json, body_of: Callable[[str], Json]) -> PushText | None:
        """Sends the event of a text. Everything in it but the text stays the same."""
        send = self._shape.push
        if send is None:
            return None
        before, _, after = _encode(head | {"choices": [body_of(_MARK)]}).rpartition(_encode(_MARK))

        def push(text: str, tokens: int) -> bool:
            if (text or not self._shape.skips_empty) and not send(before + _encode(text) + after):
                return False
            self._completion_tokens += tokens
            return True

        return push


class ChatStream(_Stream):
    """Chunks of a chat completion."""

    def events(
        self, pieces: AsyncGenerator[Piece, None], request_id: str, created: int
    ) -> AsyncGenerator[Event, None]:
        """The events of an answer that comes in ``pieces``."""
        head = self._head(request_id, "chat.completion.chunk", created)
        first = {
            "index": 0,
            "delta": {"role": self._shape.role, "content": ""},
            "finish_reason": None,
        }
        body_of = _chat_piece_or_none if self._shape.skips_empty else _chat_piece
        return self._events(pieces, head, first, body_of)

    def generate(
        self,
        _request: Any,
        result_generator: AsyncGenerator[Piece, None],
        request_id: str,
        *_: Any,
        **__: Any,
    ) -> AsyncGenerator[Event, None]:
        """In the place of ``OpenAIServingChat.chat_completion_stream_generator``."""
        return self.events(result_generator, request_id, int(time.time()))

    def _details(self, tap: Tap) -> Json:
        return super()._details(tap) | {"created_cache_tokens": tap.created_tokens}


class CompletionStream(_Stream):
    """Chunks of a text completion."""

    def events(
        self, pieces: AsyncGenerator[Piece, None], request_id: str, created: int
    ) -> AsyncGenerator[Event, None]:
        """The events of an answer that comes in ``pieces``."""
        head = self._head(request_id, "text_completion", created)
        return self._events(pieces, head, None, _completion_piece)

    def generate(
        self,
        _request: Any,
        _engine_inputs: Any,
        result_generator: AsyncIterator[tuple[int, Piece]],
        request_id: str,
        created_time: int,
        *_: Any,
        **__: Any,
    ) -> AsyncGenerator[Event, None]:
        """In the place of ``OpenAIServingCompletion.completion_stream_generator``."""
        pieces = (piece async for _, piece in result_generator)
        return self.events(pieces, request_id, created_time)


def _chat_piece(text: str) -> Json:
    return {"index": 0, "delta": {"content": text}, "finish_reason": None}


def _chat_piece_or_none(text: str) -> Json:
    delta = {"content": text} if text else {}
    return {"index": 0, "delta": delta, "finish_reason": None}


def _completion_piece(text: str) -> Json:
    return {"index": 0, "text": text, "logprobs": None, "finish_reason": None}
