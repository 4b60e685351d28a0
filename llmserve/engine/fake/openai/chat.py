"""Chat completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from llmserve.engine.fake.core import Core
from llmserve.engine.fake.job import Job, plan_request
from llmserve.engine.fake.openai.body import Body, constraint, messages, sampling
from llmserve.engine.fake.openai.reply import Answer, collect, now, usage
from llmserve.engine.fake.tokens import EOS, token_bytes
from llmserve.engine.protocol import Context, Event, Json
from llmserve.types import Chunk, Constraint, GenerateRequest, Meter, TokenLogprob


@dataclass(frozen=True, slots=True)
class _Call:
    """A parsed request. ``tool`` is the function that the reply must call, if any."""

    request: GenerateRequest
    tool: str | None
    stream: bool
    include_usage: bool


async def answer(
    core: Core, fields: Json, context: Context, meter: Meter
) -> Json | AsyncGenerator[Event, None]:
    """``Operation.CHAT``."""
    call = _parse(Body(fields), context)
    job = plan_request(core.script, call.request)
    if call.stream:
        return _stream(core, job, call, context, meter)
    answers = await collect(core, job, meter)
    return {
        **_head(context, "chat.completion"),
        "choices": [_choice(i, answer, call, context) for i, answer in enumerate(answers)],
        "usage": usage(meter),
    }


def _parse(body: Body, context: Context) -> _Call:
    body.refuse("audio", "functions", "function_call", "web_search_options")
    wanted = messages(body)
    tool, schema = _forced_tool(body)
    options = body.object("stream_options")
    request = GenerateRequest(
        id=context.request_id,
        messages=wanted,
        adapter=context.adapter,
        sampling=sampling(
            body,
            ("max_completion_tokens", "max_tokens"),
            n=body.integer("n", 1) or 1,
            stop=body.strings("stop"),
            logprobs=(body.integer("top_logprobs", 0) or 0) if body.flag("logprobs") else None,
            constraint=schema or constraint(body),
        ),
    )
    include_usage = options is not None and options.flag("include_usage")
    return _Call(request, tool, body.flag("stream"), include_usage)


def _forced_tool(body: Body) -> tuple[str | None, Constraint | None]:
    """The tool that must be called, and what its arguments must look like."""
    functions: dict[str, Constraint] = {}
    for tool in body.objects("tools"):
        function = tool.object("function")
        if function is None:
            raise tool.wrong("function", "an object")
        name, parameters = function.text("name"), function.get("parameters") or {}
        if not name or not isinstance(parameters, dict):
            raise function.wrong("name", "a string, with parameters that are a JSON schema")
        functions[name] = Constraint(json_schema=parameters)
    choice: Any = body.get("tool_choice")
    if choice in (None, "none", "auto"):
        return None, None
    if choice == "required" and functions:
        return next(iter(functions.items()))
    named = None
    if isinstance(choice, dict) and isinstance(choice.get("function"), dict):
        named = choice["function"].get("name")
    if not isinstance(named, str) or named not in functions:
        raise body.wrong("tool_choice", "none, auto, required, or one of the tools by name")
    return named, functions[named]


def _head(context: Context, kind: str) -> Json:
    return {
        "id": f"chatcmpl-{context.request_id}",
        "object": kind,
        "created": now(),
        "model": context.model,
    }


def _choice(index: int, answer: Answer, call: _Call, context: Context) -> Json:
    message: Json = {"role": "assistant", "content": answer.text, "refusal": None}
    if call.tool is not None:
        function = {"name": call.tool, "arguments": answer.text}
        made = {"id": _call_id(context, index), "type": "function", "function": function}
        message |= {"content": None, "tool_calls": [made]}
    return {
        "index": index,
        "message": message,
        "finish_reason": _finish(answer.finish, call),
        "logprobs": None if call.request.sampling.logprobs is None else _scores(answer.scores),
    }


def _call_id(context: Context, index: int) -> str:
    return f"call_{context.request_id}_{index}"


def _finish(reason: str, call: _Call) -> str:
    return "tool_calls" if call.tool is not None and reason == "stop" else str(reason)


def _scores(scores: Sequence[TokenLogprob]) -> Json:
    content = [
        {
            **_score(score.token, score.token_id, score.logprob),
            "top_logprobs": [_score(*alternative) for alternative in score.top],
        }
        for score in scores
    ]
    return {"content": content, "refusal": None}


def _score(token: str, token_id: int, logprob: float) -> Json:
    shown = token.encode() if token_id == EOS else token_bytes(token_id)
    return {"token": token, "logprob": logprob, "bytes": list(shown)}


async def _stream(
    core: Core, job: Job, call: _Call, context: Context, meter: Meter
) -> AsyncGenerator[Event, None]:
    head = _head(context, "chat.completion.chunk")
    begun = 0  # In the first step all choices have a token, in their order.
    async with aclosing(core.run(job, meter)) as chunks:
        async for chunk in chunks:
            if chunk.index == begun:
                begun += 1
                yield Event({**head, "choices": [_first_delta(chunk.index, call, context)]})
            if chunk.text or chunk.logprobs or chunk.finish_reason is not None:
                yield Event({**head, "choices": [_delta(chunk, call)]})
    if call.include_usage:
        yield Event({**head, "choices": [], "usage": usage(meter)})


def _first_delta(index: int, call: _Call, context: Context) -> Json:
    delta: Json = {"role": "assistant", "content": ""}
    if call.tool is not None:
        function = {"name": call.tool, "arguments": ""}
        made = {
            "index": 0,
            "id": _call_id(context, index),
            "type": "function",
            "function": function,
        }
        delta = {"role": "assistant", "tool_calls": [made]}
    return {"index": index, "delta": delta, "finish_reason": None}


def _delta(chunk: Chunk, call: _Call) -> Json:
    delta: Json = {}
    if chunk.text and call.tool is not None:
        delta = {"tool_calls": [{"index": 0, "function": {"arguments": chunk.text}}]}
    elif chunk.text:
        delta = {"content": chunk.text}
    reason = None if chunk.finish_reason is None else _finish(chunk.finish_reason, call)
    choice: Json = {"index": chunk.index, "delta": delta, "finish_reason": reason}
    if chunk.logprobs is not None:
        choice["logprobs"] = _scores(chunk.logprobs)
    return choice
