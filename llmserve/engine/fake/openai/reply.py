"""What the replies of several routes share."""

from __future__ import annotations

import time
from contextlib import aclosing
from dataclasses import dataclass, field

from llmserve.engine.fake.core import Core
from llmserve.engine.fake.job import Job
from llmserve.engine.protocol import Json
from llmserve.types import FinishReason, Meter, TokenLogprob


@dataclass(slots=True)
class Answer:
    """One finished choice."""

    text: str = ""
    finish: FinishReason = FinishReason.STOP
    stop: str | int | None = None
    scores: list[TokenLogprob] = field(default_factory=list)


async def collect(core: Core, job: Job, meter: Meter) -> list[Answer]:
    """Run a job to its end."""
    answers = [Answer() for _ in job.choices]
    async with aclosing(core.run(job, meter)) as chunks:
        async for chunk in chunks:
            answer = answers[chunk.index]
            answer.text += chunk.text
            answer.scores.extend(chunk.logprobs or ())
            if chunk.finish_reason is not None:
                answer.finish, answer.stop = chunk.finish_reason, chunk.stop_reason
    return answers


def usage(meter: Meter) -> Json:
    """OpenAI's usage object of chat and completions."""
    return {
        "prompt_tokens": meter.prompt_tokens,
        "completion_tokens": meter.completion_tokens,
        "total_tokens": meter.prompt_tokens + meter.completion_tokens,
    }


def now() -> int:
    """Unix time, for ``created``."""
    return int(time.time())
