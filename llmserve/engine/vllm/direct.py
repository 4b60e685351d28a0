"""Plain requests, straight from their JSON to the engine.

vLLM's serving classes turn a body into a pydantic model of a hundred fields, ask it for
its template, its tokens and its sampling, each with everything that any request may want,
and build the answer the same way; for a short request that is most of the work of this
process. A body that has nothing but a text, the usual sampling fields and one answer needs
none of it: ``plan`` reads a short one at once, ``plan_long`` a long one, or they leave it to
vLLM. They refuse nothing but a prompt that is too long, which they have counted: what is
wrong with a body otherwise is vLLM's to say.

The slow twins are ``OpenAIServingChat.create_chat_completion`` and
``OpenAIServingCompletion.create_completion`` in vLLM, reached through ``face.answer``;
``tests/contract/test_direct.py`` compares the prompt and the sampling parameters that reach
the engine, and every event and reply, of both.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from vllm.entrypoints.serve.utils.api_utils import get_max_tokens
from vllm.inputs import tokens_input
from vllm.sampling_params import RequestOutputKind, SamplingParams

from llmserve.engine.protocol import Context, Event, Json
from llmserve.engine.vllm.lean import (
    ChatStream,
    CompletionStream,
    Shape,
    finds_tool_calls_only,
)
from llmserve.engine.vllm.lean_reply import Whole, chat_reply, completion_reply
from llmserve.engine.vllm.metered import Plain
from llmserve.engine.vllm.prompts import Prompts
from llmserve.engine.vllm.run import Run
from llmserve.errors import PromptTooLong
from llmserve.types import Operation

log = logging.getLogger(__name__)

_NUMBER = (float, int)
_SAMPLING: dict[str, tuple[type, ...]] = {
    "temperature": _NUMBER,
    "top_p": _NUMBER,
    "top_k": (int,),
    "min_p": _NUMBER,
    "presence_penalty": _NUMBER,
    "frequency_penalty": _NUMBER,
    "repetition_penalty": _NUMBER,
}
_USUAL: dict[str, tuple[type, ...]] = _SAMPLING | {
    "model": (str,),
    "max_tokens": (int,),
    "n": (int,),
    "seed": (int,),
    "stop": (str, list),
    "ignore_eos": (bool,),
    "stream": (bool,),
    "stream_options": (dict,),
    "user": (str,),
}
_FIELDS: dict[Operation, dict[str, tuple[type, ...]]] = {
    Operation.CHAT: _USUAL | {"messages": (list,), "max_completion_tokens": (int,)},
    Operation.COMPLETION: _USUAL | {"prompt": (str,)},
}
_COMPLETION_TOKENS = 16
"""OpenAI's default for completions; a chat may fill the context."""

_NEUTRAL = {
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
}


@dataclass(frozen=True, slots=True)
class Plan:
    """What the engine is to do for a plain request."""

    operation: Operation
    prompt_ids: list[int]
    sampling: SamplingParams
    stream: bool
    usage_asked: bool
    arrived_at: float
    """``time.time()``, before the prompt was rendered: vLLM's times begin there."""


class Direct:
    """What plans need to know of a model, found out once. ``serving``: vLLM's class of
    each operation."""

    def __init__(
        self, prompts: Prompts, serving: dict[Operation, Any], chars_per_token: int
    ) -> None:
        self._prompts = prompts
        self._chars_per_token = chars_per_token
        self._serving = {name: it for name, it in serving.items() if _has_plain_answers(it)}
        self._neutral = {
            name: _NEUTRAL
            | {
                key: it.default_sampling_params[key]
                for key in _NEUTRAL
                if key in it.default_sampling_params
            }
            for name, it in self._serving.items()
        }

    def plan(self, operation: Operation, body: Json) -> Plan | None:
        """How to answer a short request, or ``None`` for what is not plain, or not right."""
        arrived_at = time.time()
        try:
            if operation not in self._serving or not _is_usual(operation, body):
                return None
            chat = operation is Operation.CHAT
            prompts = self._prompts
            ids = prompts.chat(body["messages"]) if chat else prompts.text(body["prompt"])
            return self._planned(operation, body, ids, arrived_at) if ids else None
        except Exception:
            _log_odd()
            return None

    async def plan_long(self, operation: Operation, body: Json) -> Plan | None:
        """As ``plan``, for a long prompt. Raises ``PromptTooLong``."""
        arrived_at = time.time()
        try:
            if operation not in self._serving or not _is_usual(operation, body):
                return None
            chat = operation is Operation.CHAT
            context = self._serving[operation].model_config.max_model_len
            most = context, context * self._chars_per_token
            prompts = self._prompts
            counted = await (
                prompts.long_chat(body["messages"], *most)
                if chat
                else prompts.long_text(body["prompt"], *most)
            )
            if counted is None:
                return None
            if counted.ids is not None:
                return self._planned(operation, body, counted.ids, arrived_at)
        except Exception:
            _log_odd()
            return None
        raise PromptTooLong(counted.tokens, context, param="messages" if chat else "prompt")

    def _planned(
        self, operation: Operation, body: Json, ids: list[int], arrived_at: float
    ) -> Plan | None:
        serving = self._serving[operation]
        context = serving.model_config.max_model_len
        asked = body.get("max_completion_tokens", body.get("max_tokens"))
        if asked is None and operation is Operation.COMPLETION:
            asked = _COMPLETION_TOKENS
        if not ids or len(ids) >= context or (asked is not None and not 0 < asked <= context):
            return None
        defaults = serving.default_sampling_params
        most = get_max_tokens(context, asked, len(ids), defaults, serving.override_max_tokens)
        sampling = self._sampling(operation, body, most, defaults)
        usage_asked = body.get("stream_options", {}).get("include_usage", False)
        stream = body.get("stream", False)
        return Plan(operation, ids, sampling, stream, usage_asked, arrived_at)

    def _sampling(
        self, operation: Operation, body: Json, most: int, defaults: Json
    ) -> SamplingParams:
        chosen = {name: body.get(name, value) for name, value in self._neutral[operation].items()}
        stop_ids = defaults.get("stop_token_ids")
        return SamplingParams(
            **chosen,
            seed=body.get("seed"),
            stop=body.get("stop"),
            stop_token_ids=list(stop_ids) if stop_ids else None,
            ignore_eos=body.get("ignore_eos", False),
            max_tokens=most,
            output_kind=RequestOutputKind.DELTA,
            skip_clone=True,
        )

    async def answer(
        self, plan: Plan, context: Context, client: Plain, adapter: Any
    ) -> Json | AsyncGenerator[Event, None]:
        """As ``Engine.openai``. Raises what vLLM raises."""
        serving = self._serving[plan.operation]
        shape = Shape(
            model=context.model,
            role=getattr(serving, "response_role", ""),
            fingerprint=serving.system_fingerprint,
            usage_asked=plan.usage_asked,
            cached_shown=serving.enable_prompt_tokens_details,
            skips_empty=getattr(serving, "parser_cls", None) is not None,
            push=context.push,
        )
        chat = plan.operation is Operation.CHAT
        request_id = f"{'chatcmpl' if chat else 'cmpl'}-{context.request_id}"
        prompt = tokens_input(plan.prompt_ids, cache_salt=context.cache_salt)
        prompt["arrival_time"] = plan.arrived_at
        created = int(time.time())
        if plan.stream:
            pieces = client.generate(prompt, plan.sampling, request_id, lora_request=adapter)
            kind = ChatStream if chat else CompletionStream
            return kind(shape, client).events(pieces, request_id, created)
        run = client.run(prompt, plan.sampling, request_id, lora_request=adapter)
        reply = chat_reply if chat else completion_reply
        return reply(shape, request_id, created, await _collect(run))


def _log_odd() -> None:
    """An odd value somewhere in a body: vLLM's classes say what is wrong with it."""
    log.debug("a request is left to vLLM", exc_info=True)


async def _collect(request: Run) -> Whole:
    texts: list[str] = []
    tokens = 0

    def push(text: str, count: int) -> bool:
        nonlocal tokens
        texts.append(text)
        tokens += count
        return True

    async with request as run:
        tap = run.tap
        while True:
            piece = await run.next()
            push(piece.text, len(piece.token_ids))
            if piece.finish_reason is not None:
                break
            tap.push = push
    return Whole(
        text="".join(texts),
        finish_reason=piece.finish_reason,
        stop_reason=piece.stop_reason,
        prompt_tokens=tap.prompt_tokens,
        completion_tokens=tokens,
        cached_tokens=tap.cached_tokens,
        created_tokens=tap.created_tokens,
    )


def _is_usual(operation: Operation, body: Json) -> bool:
    """Whether these are fields that plans know, of the types that they expect."""
    types = _FIELDS[operation]
    for name, value in body.items():
        if name not in types or type(value) not in types[name]:
            return False
    options = body.get("stream_options", {})
    stop = body.get("stop")
    return bool(
        ("messages" in body or "prompt" in body)
        and body.get("n", 1) == 1
        and abs(body.get("seed", 0)) < 2**63
        and ("stream_options" not in body or body.get("stream", False))
        and options.keys() <= {"include_usage"}
        and type(options.get("include_usage", False)) is bool
        and (type(stop) is not list or all(type(text) is str for text in stop))
    )


def _has_plain_answers(serving: Any) -> bool:
    return (
        serving is not None
        and finds_tool_calls_only(getattr(serving, "parser_cls", None))
        and not getattr(serving, "enable_log_outputs", False)
        and not serving.enable_force_include_usage
        and not serving.enable_per_request_metrics
        and serving.engine_client.output_processor.stream_interval == 1
    )
