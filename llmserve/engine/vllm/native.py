"""The native face: our domain in, vLLM's renderer and sampler, our domain out."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from vllm.inputs import TokensInput, tokens_input
from vllm.logprobs import Logprob
from vllm.lora.request import LoRARequest
from vllm.outputs import CompletionOutput
from vllm.renderers import ChatParams, TokenizeParams
from vllm.renderers.inputs.preprocess import parse_model_prompt
from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

from llmserve.engine.protocol import PushText
from llmserve.engine.vllm.core import Core
from llmserve.engine.vllm.errors import Fields, translate
from llmserve.engine.vllm.inline import are_short
from llmserve.engine.vllm.metered import Metered, Plain
from llmserve.engine.vllm.schemas import check_enforced, check_pattern
from llmserve.engine.vllm.tap import Piece
from llmserve.errors import InvalidRequest, NotImplementedHere, PromptTooLong, ServerError
from llmserve.types import (
    Chunk,
    Constraint,
    FinishReason,
    GenerateRequest,
    Meter,
    Sampling,
    TokenLogprob,
)

log = logging.getLogger(__name__)

_FINISH = {
    "stop": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    # vLLM gave up on a loop in the output; for the client the answer simply stops.
    "repetition": FinishReason.STOP,
}


async def generate(
    core: Core, request: GenerateRequest, meter: Meter, push: PushText | None
) -> AsyncGenerator[Chunk, None]:
    """The chunks of one request. See ``Engine.generate``."""
    field = "prompt" if request.messages is None else "messages"
    if "generate" not in core.info.tasks:
        raise NotImplementedHere("This model does not generate text.")
    if request.adapter is not None and request.adapter not in core.info.adapters:
        raise InvalidRequest(f"There is no adapter {request.adapter!r}.", param="model")
    try:
        _check_constraint(request.sampling.constraint)
        prompt, length = await _render(core, request, field)
        params = sampling_params(core, request.sampling, length)
        client, adapter = core.metered(meter), core.adapter(request.adapter)
        plain = client.plain() if _is_plain(request.sampling) else None
        chunks = (
            _any_chunks(client, prompt, params, request, adapter)
            if plain is None
            else _plain_chunks(plain, prompt, params, request.id, adapter, push)
        )
        async with aclosing(chunks):
            async for chunk in chunks:
                yield chunk
    except Exception as error:
        ours = translate(error, Fields(field, _constraint_field(request.sampling.constraint)))
        if isinstance(ours, ServerError) and ours is not error:
            log.error("request %s failed in the engine: %r", request.id, error)
        raise ours from error


def _is_plain(sampling: Sampling) -> bool:
    return sampling.n == 1 and sampling.logprobs is None


async def _plain_chunks(
    client: Plain,
    prompt: Any,
    params: SamplingParams,
    request_id: str,
    adapter: LoRARequest | None,
    push: PushText | None,
) -> AsyncGenerator[Chunk, None]:
    stream = client.generate(prompt, params, request_id, lora_request=adapter)
    async with aclosing(stream) as pieces:
        async for piece in pieces:
            yield _chunk(0, piece)
            client.tap.push = push


async def _any_chunks(
    client: Metered,
    prompt: Any,
    params: SamplingParams,
    request: GenerateRequest,
    adapter: LoRARequest | None,
) -> AsyncGenerator[Chunk, None]:
    stream = client.generate(prompt, params, request.id, lora_request=adapter)
    top = request.sampling.logprobs
    async with aclosing(stream) as outputs:
        async for output in outputs:
            for choice in output.outputs:
                if choice.token_ids or choice.text or choice.finish_reason:
                    logprobs = None if top is None else _logprobs(choice, top)
                    yield _chunk(choice.index, choice, logprobs)


async def _render(core: Core, request: GenerateRequest, field: str) -> tuple[Any, int]:
    """Prompt text to tokens; a long one in the renderer's thread. Returns vLLM's engine
    input and its length in tokens."""
    limit = core.info.max_model_len
    texts = _check_size(core, request, field)
    short = are_short(texts)
    prompt = await _render_plain(core, request, field, short=short)
    if prompt is None:
        inline = core.inline if short else None
        prompt = await _render_any(core, request, inline or core.llm.renderer)
    if request.cache_salt is not None:
        prompt["cache_salt"] = request.cache_salt
    length = len(prompt["prompt_token_ids"])
    if length >= limit:
        raise PromptTooLong(length, limit, param=field)
    return prompt, length


async def _render_plain(
    core: Core, request: GenerateRequest, field: str, *, short: bool
) -> TokensInput | None:
    """Without vLLM's renderer, where that does."""
    prompts, limit = core.prompts, core.info.max_model_len
    if prompts is None:
        return None
    text, messages = request.prompt, None
    if request.messages is not None:
        messages = [{"role": m.role, "content": m.content} for m in request.messages]
    if short:
        ids = prompts.text(text) if messages is None else prompts.chat(messages)
        return tokens_input(ids) if ids else None
    most = limit, limit * core.info.chars_per_token
    try:
        counted = await (
            prompts.long_text(text or "", *most)
            if messages is None
            else prompts.long_chat(messages, *most)
        )
    except Exception:  # A template refuses a conversation by raising anything it likes.
        log.debug("a prompt is left to vLLM", exc_info=True)
        return None
    if counted is None:
        return None
    if counted.ids is None:
        raise PromptTooLong(counted.tokens, limit, param=field)
    return tokens_input(counted.ids)


async def _render_any(core: Core, request: GenerateRequest, renderer: Any) -> Any:
    # No limit here: vLLM would stop counting one past it, and the error would not know
    # how long the prompt really is.
    if request.messages is None:
        parsed = parse_model_prompt(core.llm.model_config, request.prompt)
        (prompt,) = await renderer.render_cmpl_async(
            [parsed], TokenizeParams(max_total_tokens=None)
        )
        return prompt
    online = core.state.online_renderer
    defaults = {"add_generation_prompt": True, "continue_final_message": False}
    params = ChatParams(
        chat_template=online.chat_template,
        chat_template_content_format=online.chat_template_content_format,
        chat_template_kwargs=defaults | online.default_chat_template_kwargs,
    )
    conversation = [{"role": m.role, "content": m.content} for m in request.messages]
    _, (prompt,) = await renderer.render_chat_async(
        [conversation], params, TokenizeParams(max_total_tokens=None, add_special_tokens=False)
    )
    return prompt


def _check_size(core: Core, request: GenerateRequest, field: str) -> list[str]:
    """Refuse what cannot fit whatever its tokens are, before it costs any time. Returns
    the texts of the prompt."""
    texts = [m.content for m in request.messages or ()] or [request.prompt or ""]
    if not any(texts):
        raise InvalidRequest(f"{field} must not be empty.", param=field)
    limit = core.info.max_model_len
    most = limit * core.info.chars_per_token
    size = sum(map(len, texts))
    if size > most:
        raise InvalidRequest(
            f"The prompt has {size} characters; this model's context of {limit} tokens "
            f"holds at most {most}.",
            param=field,
            code=PromptTooLong.code,
        )
    return texts


def sampling_params(core: Core, sampling: Sampling, prompt_tokens: int) -> SamplingParams:
    """vLLM's sampling parameters: the request's over the model's own defaults."""
    room = core.info.max_model_len - prompt_tokens
    if sampling.max_tokens is not None and sampling.max_tokens > core.info.max_model_len:
        raise InvalidRequest(
            f"max_tokens is {sampling.max_tokens}; this model's context holds "
            f"{core.info.max_model_len} tokens for prompt and answer together.",
            param="max_tokens",
        )
    defaults = dict(core.default_sampling)
    most = min(room, sampling.max_tokens or defaults.pop("max_tokens", room))
    defaults.pop("max_tokens", None)
    chosen = {
        name: value
        for name in (
            "temperature",
            "top_p",
            "top_k",
            "min_p",
            "presence_penalty",
            "frequency_penalty",
            "repetition_penalty",
        )
        if (value := getattr(sampling, name)) is not None
    }
    return SamplingParams(
        **defaults | chosen,
        n=sampling.n,
        max_tokens=most,
        seed=sampling.seed,
        stop=list(sampling.stop) or None,
        logprobs=sampling.logprobs,
        logit_bias=dict(sampling.logit_bias) or None,
        ignore_eos=sampling.ignore_eos,
        structured_outputs=_structured(sampling.constraint),
        output_kind=RequestOutputKind.DELTA,
        skip_clone=True,
    )


def _check_constraint(constraint: Constraint | None) -> None:
    """Refuse what the engine would not keep to."""
    if constraint is not None and constraint.json_schema is not None:
        check_enforced(constraint.json_schema, "json_schema")
    if constraint is not None and constraint.regex is not None:
        check_pattern(constraint.regex, "regex")


def _constraint_field(constraint: Constraint | None) -> str | None:
    if constraint is None:
        return None
    names = ("json_schema", "regex", "choice")
    return next(name for name in names if getattr(constraint, name) is not None)


def _structured(constraint: Constraint | None) -> StructuredOutputsParams | None:
    if constraint is None:
        return None
    if constraint.json_schema is not None:
        if not constraint.json_schema:
            return StructuredOutputsParams(json_object=True)
        return StructuredOutputsParams(json=dict(constraint.json_schema))
    if constraint.regex is not None:
        return StructuredOutputsParams(regex=constraint.regex)
    return StructuredOutputsParams(choice=list(constraint.choice or ()))


def _chunk(
    index: int,
    output: CompletionOutput | Piece,
    logprobs: tuple[TokenLogprob, ...] | None = None,
) -> Chunk:
    finish = _FINISH[output.finish_reason] if output.finish_reason else None
    return Chunk(
        index=index,
        text=output.text,
        token_ids=tuple(output.token_ids),
        finish_reason=finish,
        stop_reason=output.stop_reason if finish else None,
        logprobs=logprobs,
    )


def _logprobs(choice: CompletionOutput, top: int) -> tuple[TokenLogprob, ...]:
    """vLLM reports the chosen token and ``top`` alternatives, in no fixed order."""
    rows = choice.logprobs or []
    return tuple(
        _token_logprob(token_id, row, top)
        for token_id, row in zip(choice.token_ids, rows, strict=True)
    )


def _token_logprob(token_id: int, row: dict[int, Logprob], top: int) -> TokenLogprob:
    chosen = row[token_id]
    ranked = sorted(row.items(), key=lambda item: item[1].logprob, reverse=True)[:top]
    return TokenLogprob(
        token=chosen.decoded_token or "",
        token_id=token_id,
        logprob=chosen.logprob,
        top=tuple((entry.decoded_token or "", id_, entry.logprob) for id_, entry in ranked),
    )
