"""OpenAI Responses: text in, text out, nothing stored."""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from llmserve.engine.fake.core import Core
from llmserve.engine.fake.job import Job, plan_request
from llmserve.engine.fake.openai.body import Body, messages, sampling, schema_constraint
from llmserve.engine.fake.openai.reply import collect, now
from llmserve.engine.protocol import Context, Event, Json
from llmserve.types import Constraint, FinishReason, GenerateRequest, Message, Meter


@dataclass(frozen=True, slots=True)
class _Reply:
    """What all forms of the response object of one request share."""

    context: Context
    body: Body

    @property
    def item_id(self) -> str:
        return f"msg_{self.context.request_id}"

    def response(self, status: str, output: list[Json], meter: Meter | None = None) -> Json:
        body = self.body
        temperature, top_p = body.number("temperature", 0, 2), body.number("top_p", 0, 1)
        cut = status == "incomplete"
        fields: Json = {
            "id": f"resp_{self.context.request_id}",
            "object": "response",
            "created_at": now(),
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "instructions": body.text("instructions"),
            "metadata": body.get("metadata") or {},
            "model": self.context.model,
            "output": output,
            "parallel_tool_calls": True,
            "temperature": 1.0 if temperature is None else temperature,
            "tool_choice": "auto",
            "tools": [],
            "top_p": 1.0 if top_p is None else top_p,
        }
        if meter is not None:
            fields["usage"] = _usage(meter)
        return fields

    def item(self, status: str, *texts: str) -> Json:
        content = [part(text) for text in texts]
        return {
            "id": self.item_id,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": content,
        }


async def answer(
    core: Core, fields: Json, context: Context, meter: Meter
) -> Json | AsyncGenerator[Event, None]:
    """``Operation.RESPONSES``."""
    body = Body(fields)
    body.refuse("background", "previous_response_id", "conversation", "prompt", "tools")
    request = GenerateRequest(
        id=context.request_id,
        messages=_conversation(body),
        adapter=context.adapter,
        sampling=sampling(body, ("max_output_tokens",), constraint=_constraint(body)),
    )
    job = plan_request(core.script, request)
    reply = _Reply(context, body)
    if body.flag("stream"):
        return _stream(core, job, reply, meter)
    (done,) = await collect(core, job, meter)
    status = _status(done.finish)
    return reply.response(status, [reply.item(status, done.text)], meter)


def part(text: str) -> Json:
    """One piece of output text."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _conversation(body: Body) -> tuple[Message, ...]:
    instructions = body.text("instructions")
    first = () if instructions is None else (Message("system", instructions),)
    wanted = body.get("input")
    if isinstance(wanted, str):
        return (*first, Message("user", wanted))
    return (*first, *messages(body, "input"))


def _constraint(body: Body) -> Constraint | None:
    text = body.object("text")
    form = None if text is None else text.object("format")
    if form is None or form.get("type") == "text":
        return None
    if form.get("type") == "json_object":
        return Constraint(json_schema={})
    if form.get("type") != "json_schema":
        raise form.wrong("type", "text, json_object or json_schema")
    return schema_constraint(form)


def _status(finish: FinishReason) -> str:
    return "incomplete" if finish is FinishReason.LENGTH else "completed"


def _usage(meter: Meter) -> Json:
    return {
        "input_tokens": meter.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": meter.cached_tokens,
            "cache_write_tokens": 0,
        },
        "output_tokens": meter.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": meter.prompt_tokens + meter.completion_tokens,
    }


async def _stream(core: Core, job: Job, reply: _Reply, meter: Meter) -> AsyncGenerator[Event, None]:
    numbers = itertools.count()
    where: Json = {"item_id": reply.item_id, "output_index": 0, "content_index": 0}

    def event(kind: str, **fields: object) -> Event:
        kind = f"response.{kind}"
        return Event({"type": kind, "sequence_number": next(numbers), **fields}, kind)

    text, finish = "", FinishReason.STOP
    async with aclosing(core.run(job, meter)) as chunks:
        # The first token comes first, so that an early failure keeps its status.
        chunk = await anext(chunks)
        for kind in ("created", "in_progress"):
            yield event(kind, response=reply.response("in_progress", []))
        yield event("output_item.added", output_index=0, item=reply.item("in_progress"))
        yield event("content_part.added", **where, part=part(""))
        while True:
            if chunk.text:
                text += chunk.text
                yield event("output_text.delta", **where, delta=chunk.text, logprobs=[])
            if chunk.finish_reason is not None:
                finish = chunk.finish_reason
                break
            chunk = await anext(chunks)
    status = _status(finish)
    item = reply.item(status, text)
    yield event("output_text.done", **where, text=text, logprobs=[])
    yield event("content_part.done", **where, part=part(text))
    yield event("output_item.done", output_index=0, item=item)
    yield event(status, response=reply.response(status, [item], meter))
