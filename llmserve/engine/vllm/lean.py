"""The per-token half of plain streams, without an object model for every token.

vLLM's serving classes validate a request, render it, choose its sampling and start it;
all of that stays theirs. Then they make three pydantic objects for each token, run a
parser that has nothing to find over the whole text so far, and write JSON that we would
have to read again. For a stream that is nothing but text (one choice, no tools, no
reasoning, no log probabilities, no echo) the generators below give the same events
straight from the engine's outputs.

The slow twins are ``chat_completion_stream_generator`` and ``completion_stream_generator``
in vLLM; ``tests/contract/test_lean.py`` compares the events of both.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

from vllm.outputs import RequestOutput
from vllm.parser.abstract_parser import DelegatingParser, Parser

from llmserve.engine.protocol import Context, Event, Json
from llmserve.types import Operation


def make_lean(operation: Operation, serving: Any, request: Any, context: Context) -> None:
    """Give this request's copy of a serving class the lean generator, when the request is
    plain enough. ``request`` is vLLM's own, validated."""
    if operation is Operation.CHAT and _is_plain_chat(serving, request):
        stream = _ChatStream(serving, request, context)
        serving.chat_completion_stream_generator = stream.generate
    elif operation is Operation.COMPLETION and _is_plain_completion(serving, request):
        serving.completion_stream_generator = _CompletionStream(serving, request, context).generate


def _is_plain_chat(serving: Any, request: Any) -> bool:
    return (
        _is_plain(serving, request)
        and not request.tools
        and not request.logprobs
        and not request.return_prompt_text
        and not serving.enable_log_outputs
        and _finds_tool_calls_only(serving.parser_cls)
    )


def _finds_tool_calls_only(parser: type[Parser] | None) -> bool:
    """Whether the parser has nothing to find where no tools are offered: a reasoning
    parser has, and so has one that does everything itself."""
    if parser is None:
        return True
    return issubclass(parser, DelegatingParser) and parser.reasoning_parser_cls is None


def _is_plain_completion(serving: Any, request: Any) -> bool:
    prompt = request.prompt
    one = isinstance(prompt, str) or (isinstance(prompt, list) and isinstance(prompt[0], int))
    return _is_plain(serving, request) and one and request.logprobs is None


def _is_plain(serving: Any, request: Any) -> bool:
    options = request.stream_options
    return (
        bool(request.stream)
        and (request.n or 1) == 1
        and not request.echo
        and not request.return_token_ids
        and not (options and options.continuous_usage_stats)
        and not serving.enable_force_include_usage
        and not serving.enable_per_request_metrics
    )


class _Stream:
    """What both protocols share. Its iterators raise what the engine raises."""

    def __init__(self, serving: Any, request: Any, context: Context) -> None:
        options = request.stream_options
        self._usage_asked = bool(options and options.include_usage)
        self._cached_shown = serving.enable_prompt_tokens_details
        self._fingerprint = serving.system_fingerprint
        self._role = getattr(serving, "response_role", "assistant")
        # A parser says nothing where there is no text.
        self._skips_empty = getattr(serving, "parser_cls", None) is not None
        self._model = context.model
        self._prompt_tokens = 0
        self._completion_tokens = 0
        self._details: Json = {}

    def _head(self, request_id: str, kind: str, created: int) -> Json:
        return {"id": request_id, "object": kind, "created": created, "model": self._model}

    def _count(self, output: RequestOutput) -> None:
        """From the first output of a request."""
        self._prompt_tokens = len(output.prompt_token_ids or ())
        if self._cached_shown:
            self._details = {
                name: value for name, value in self._found(output).items() if value is not None
            }

    def _found(self, output: RequestOutput) -> Json:
        """What the prefix cache had of the prompt."""
        return {"cached_tokens": output.num_cached_tokens}

    def _usage(self) -> Json:
        usage: Json = {
            "prompt_tokens": self._prompt_tokens,
            "total_tokens": self._prompt_tokens + self._completion_tokens,
            "completion_tokens": self._completion_tokens,
        }
        if self._details:
            usage["prompt_tokens_details"] = self._details
        return usage

    def _end(self, head: Json) -> Event:
        end = head | {"choices": [], "usage": self._usage()}
        if self._fingerprint is not None:
            end["system_fingerprint"] = self._fingerprint
        return Event(end)

    async def _events(
        self,
        outputs: AsyncIterator[RequestOutput],
        head: Json,
        first: Json | None,
        piece: Callable[[str], Json],
    ) -> AsyncGenerator[Event, None]:
        begun = False
        async for output in outputs:
            if not begun:
                begun = True
                self._count(output)
                if first is not None:
                    yield Event(head | {"choices": [first]})
            for choice in output.outputs:
                tokens = len(choice.token_ids)
                if not choice.text and not tokens and not self._completion_tokens:
                    continue  # Part of a long prompt, and no token yet.
                self._completion_tokens += tokens
                if not choice.text and choice.finish_reason is None and self._skips_empty:
                    continue
                body = piece(choice.text)
                frame = head | {"choices": [body]}
                if choice.finish_reason is not None:
                    body["finish_reason"] = choice.finish_reason
                    if choice.stop_reason is not None:
                        body["stop_reason"] = choice.stop_reason
                    if self._fingerprint is not None and not self._usage_asked:
                        frame["system_fingerprint"] = self._fingerprint
                yield Event(frame)
        if self._usage_asked:
            yield self._end(head)


class _ChatStream(_Stream):
    """Chunks of a chat completion."""

    async def generate(
        self,
        _request: Any,
        result_generator: AsyncIterator[RequestOutput],
        request_id: str,
        *_: Any,
        **__: Any,
    ) -> AsyncGenerator[Event, None]:
        """In the place of ``OpenAIServingChat.chat_completion_stream_generator``."""
        head = self._head(request_id, "chat.completion.chunk", int(time.time()))
        first = {
            "index": 0,
            "delta": {"role": self._role, "content": ""},
            "finish_reason": None,
        }
        piece = _chat_piece_or_none if self._skips_empty else _chat_piece
        async for event in self._events(result_generator, head, first, piece):
            yield event

    def _found(self, output: RequestOutput) -> Json:
        created = output.num_cache_creation_tokens
        return super()._found(output) | {"created_cache_tokens": created}


class _CompletionStream(_Stream):
    """Chunks of a text completion."""

    async def generate(
        self,
        _request: Any,
        _engine_inputs: Any,
        result_generator: AsyncIterator[tuple[int, RequestOutput]],
        request_id: str,
        created_time: int,
        *_: Any,
        **__: Any,
    ) -> AsyncGenerator[Event, None]:
        """In the place of ``OpenAIServingCompletion.completion_stream_generator``."""
        head = self._head(request_id, "text_completion", created_time)
        outputs = (output async for _, output in result_generator)
        async for event in self._events(outputs, head, None, _completion_piece):
            yield event


def _chat_piece(text: str) -> Json:
    return {"index": 0, "delta": {"content": text}, "finish_reason": None}


def _chat_piece_or_none(text: str) -> Json:
    delta = {"content": text} if text else {}
    return {"index": 0, "delta": delta, "finish_reason": None}


def _completion_piece(text: str) -> Json:
    return {"index": 0, "text": text, "logprobs": None, "finish_reason": None}
