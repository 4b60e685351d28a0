"""Text completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from llmserve.engine.fake.core import Core
from llmserve.engine.fake.job import Job, plan
from llmserve.engine.fake.openai.body import Body, constraint, prompts, sampling
from llmserve.engine.fake.openai.reply import collect, now, usage
from llmserve.engine.protocol import Context, Event, Json
from llmserve.types import FinishReason, GenerateRequest, Meter, TokenLogprob


async def answer(
    core: Core, fields: Json, context: Context, meter: Meter
) -> Json | AsyncGenerator[Event, None]:
    """``Operation.COMPLETION``. Several prompts give the choices of each in turn."""
    body = Body(fields)
    body.refuse("echo", "suffix", "best_of")
    request = GenerateRequest(
        id=context.request_id,
        adapter=context.adapter,
        sampling=sampling(
            body,
            ("max_tokens",),
            n=body.integer("n", 1) or 1,
            stop=body.strings("stop"),
            logprobs=body.integer("logprobs", 0),
            constraint=constraint(body),
        ),
    )
    job = plan(core.script, prompts(body, "prompt"), request, field="prompt")
    options = body.object("stream_options")
    include_usage = options is not None and options.flag("include_usage")
    if body.flag("stream"):
        return _stream(core, job, include_usage, context, meter)
    answers = await collect(core, job, meter)
    return {
        **_head(context),
        "choices": [
            _choice(index, answer.text, answer.finish, _scores(answer.scores))
            for index, answer in enumerate(answers)
        ],
        "usage": usage(meter),
    }


async def _stream(
    core: Core, job: Job, include_usage: bool, context: Context, meter: Meter
) -> AsyncGenerator[Event, None]:
    head = _head(context)
    sent = [0] * len(job.choices)
    async with aclosing(core.run(job, meter)) as chunks:
        async for chunk in chunks:
            if not (chunk.text or chunk.logprobs or chunk.finish_reason):
                continue
            scores = _scores(chunk.logprobs or (), sent[chunk.index])
            sent[chunk.index] += sum(len(score.token) for score in chunk.logprobs or ())
            choice = _choice(chunk.index, chunk.text, chunk.finish_reason, scores)
            yield Event({**head, "choices": [choice]})
    if include_usage:
        yield Event({**head, "choices": [], "usage": usage(meter)})


def _head(context: Context) -> Json:
    return {
        "id": f"cmpl-{context.request_id}",
        "object": "text_completion",
        "created": now(),
        "model": context.model,
    }


def _choice(index: int, text: str, finish: FinishReason | None, scores: Json | None) -> Json:
    reason = None if finish is None else str(finish)
    return {"index": index, "text": text, "finish_reason": reason, "logprobs": scores}


def _scores(scores: Sequence[TokenLogprob], offset: int = 0) -> Json | None:
    """``offset`` is where the first of these tokens begins."""
    if not scores:
        return None
    offsets = []
    for score in scores:
        offsets.append(offset)
        offset += len(score.token)
    return {
        "tokens": [score.token for score in scores],
        "token_logprobs": [score.logprob for score in scores],
        "top_logprobs": [{token: value for token, _, value in score.top} for score in scores],
        "text_offset": offsets,
    }
