"""Anthropic Messages: text in, text out."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from llmserve.engine.fake.core import Core
from llmserve.engine.fake.job import Job, plan_request
from llmserve.engine.fake.openai.body import Body, messages, plain, sampling
from llmserve.engine.fake.openai.reply import collect
from llmserve.engine.protocol import Context, Event, Json
from llmserve.types import FinishReason, GenerateRequest, Message, Meter


async def answer(
    core: Core, fields: Json, context: Context, meter: Meter
) -> Json | AsyncGenerator[Event, None]:
    """``Operation.MESSAGES``."""
    body = Body(fields)
    if body.integer("max_tokens", 1) is None:
        raise body.wrong("max_tokens", "a positive integer")
    job = plan_request(core.script, _request(body, context))
    if body.flag("stream"):
        return _stream(core, job, context, meter)
    (done,) = await collect(core, job, meter)
    return _message(
        context,
        [{"type": "text", "text": done.text}],
        {"input_tokens": meter.prompt_tokens, "output_tokens": meter.completion_tokens},
        _stop(done.finish, done.stop),
    )


async def count_tokens(core: Core, fields: Json, context: Context, meter: Meter) -> Json:
    """``Operation.COUNT_TOKENS``."""
    job = plan_request(core.script, _request(Body(fields), context))
    meter.prompt_tokens = job.prompt_tokens
    return {"input_tokens": job.prompt_tokens}


def _request(body: Body, context: Context) -> GenerateRequest:
    body.refuse("tools", "thinking", "mcp_servers", "container")
    system = () if body.get("system") is None else (Message("system", plain(body, "system")),)
    stop = body.strings("stop_sequences")
    return GenerateRequest(
        id=context.request_id,
        messages=(*system, *messages(body)),
        adapter=context.adapter,
        sampling=sampling(body, ("max_tokens",), stop=stop),
    )


def _message(context: Context, content: list[Json], usage: Json, stop: Json) -> Json:
    return {
        "id": f"msg_{context.request_id}",
        "type": "message",
        "role": "assistant",
        "model": context.model,
        "content": content,
        **stop,
        "usage": usage,
    }


def _stop(finish: FinishReason | None, string: str | int | None) -> Json:
    """``stop_reason`` and ``stop_sequence``; both are null while the message runs."""
    if isinstance(string, str):
        return {"stop_reason": "stop_sequence", "stop_sequence": string}
    reasons = {None: None, FinishReason.STOP: "end_turn", FinishReason.LENGTH: "max_tokens"}
    return {"stop_reason": reasons[finish], "stop_sequence": None}


async def _stream(
    core: Core, job: Job, context: Context, meter: Meter
) -> AsyncGenerator[Event, None]:
    def event(kind: str, **fields: object) -> Event:
        return Event({"type": kind, **fields}, kind)

    async with aclosing(core.run(job, meter)) as chunks:
        # The first token comes first, so that an early failure keeps its status.
        chunk = await anext(chunks)
        begin = {"input_tokens": meter.prompt_tokens, "output_tokens": 0}
        yield event("message_start", message=_message(context, [], begin, _stop(None, None)))
        yield event("content_block_start", index=0, content_block={"type": "text", "text": ""})
        while True:
            if chunk.text:
                delta = {"type": "text_delta", "text": chunk.text}
                yield event("content_block_delta", index=0, delta=delta)
            if chunk.finish_reason is not None:
                break
            chunk = await anext(chunks)
    yield event("content_block_stop", index=0)
    yield event(
        "message_delta",
        delta=_stop(chunk.finish_reason, chunk.stop_reason),
        usage={"output_tokens": meter.completion_tokens},
    )
    yield event("message_stop")
