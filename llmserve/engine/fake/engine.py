"""The fake engine itself: the seam of ``engine/protocol.py`` over the simulated core."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable

from llmserve.engine.fake import openai
from llmserve.engine.fake.core import Core
from llmserve.engine.fake.job import plan_request
from llmserve.engine.fake.script import Script
from llmserve.engine.fake.tokens import CHARS_PER_TOKEN
from llmserve.engine.protocol import Context, Event, Json, PushText, Report
from llmserve.errors import NotImplementedHere, NotReady
from llmserve.types import Chunk, GenerateRequest, Load, Meter, ModelInfo, Operation

_DEFAULT = Script()


class FakeEngine:
    """An ``Engine`` that plays a ``Script``."""

    def __init__(self, script: Script = _DEFAULT) -> None:
        self._script = script
        self._core = Core(script)
        self._starting = asyncio.Lock()
        self._failures = script.failing_starts

    @property
    def info(self) -> ModelInfo:
        """What is served. Raises ``NotReady`` before ``start``."""
        if self._core.state == "new":
            raise NotReady("The engine is not started.")
        script = self._script
        return ModelInfo(
            name=script.model,
            source=script.model,
            max_model_len=script.max_model_len,
            tasks=script.tasks,
            adapters=script.adapters,
            max_running=script.max_running,
            chars_per_token=CHARS_PER_TOKEN,
        )

    async def start(self, report: Report) -> None:
        """Go through the scripted stages, reporting the begin and the end of each."""
        async with self._starting:
            if self._core.state == "new":
                await self._go_through_stages(report)
                # It may have been closed meanwhile, and then it stays closed.
                if self._core.state == "new":
                    self._core.state = "ready"
            self._core.check()

    async def _go_through_stages(self, report: Report) -> None:
        for stage, seconds in self._script.stages:
            report(stage, 0.0)
            await asyncio.sleep(seconds)
            if self._failures > 0:
                self._failures -= 1
                raise self._script.start_error(f"The fake engine failed to start while {stage}.")
            report(stage, 1.0)

    async def generate(
        self,
        request: GenerateRequest,
        meter: Meter,
        push: PushText | None = None,  # noqa: ARG002
    ) -> AsyncGenerator[Chunk, None]:
        """Stream the scripted answer, one token in each chunk."""
        self._core.check()
        if "generate" not in self._script.tasks:
            raise NotImplementedHere("This model does not generate text.")
        job = plan_request(self._script, request)
        chunks = self._core.run(job, meter)
        try:
            async for chunk in chunks:
                yield chunk
        finally:
            await chunks.aclose()

    async def openai(
        self, operation: Operation, body: Json, context: Context, meter: Meter
    ) -> Json | AsyncGenerator[Event, None]:
        """Answer in OpenAI's or Anthropic's JSON."""
        return await openai.answer(self._core, operation, body, context, meter)

    def load(self) -> Load:
        """Requests and KV cache in use at this moment."""
        return self._core.load()

    def steps(self) -> int:
        """Steps of all requests together since the start."""
        return self._core.steps

    def alive(self) -> bool:
        """True from a successful start until death or close."""
        return self._core.state == "ready"

    def die(self) -> None:
        """Die now, as a killed engine core would: what runs ends in ``EngineDied``."""
        self._core.end("dead")

    async def aclose(self) -> None:
        """End everything that runs. Idempotent."""
        self._core.end("closed")


def fake_factory(*scripts: Script) -> Callable[[Report], Awaitable[FakeEngine]]:
    """Makes engines for a supervisor; they play ``scripts`` in turn, the last one for good.

    An engine that dies, then one that cannot start, then one that works, say.
    """
    made = 0

    async def make(_: Report) -> FakeEngine:
        nonlocal made
        made += 1
        return FakeEngine(scripts[min(made, len(scripts)) - 1])

    return make
