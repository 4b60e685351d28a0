"""An engine whose model costs nothing and keeps a pace, for both servers alike.

vLLM's own engine core, scheduler and client stay; in the place of the model's step there is a
wait, and the answer repeats the prompt. So an engine on a CPU gives tokens at the pace of one
on a GPU, from a process that is not the front end's. With two cores for front end, engine core
and client, a front end that needs one of them slows the others down too; on both sides alike.

Both servers get it as an engine argument (``servers.PACED_ENGINE``). How long a step takes is
said by the newest request: its ``seed``, which samples nothing here, is the time in
microseconds, and without one a step takes no time.
"""

from __future__ import annotations

import time
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from vllm.v1.executor.uniproc_executor import UniProcExecutor
from vllm.v1.outputs import ModelRunnerOutput

FIRST_WORD = 17
"""The ids before it are special tokens of the tokenizer that is measured with (SmolLM2's):
they have no text, and a token without text is no frame."""


@dataclass(slots=True)
class _Answer:
    """One request: the tokens it says over and over, and how many of its own are computed."""

    prompt: int
    said: list[int]
    computed: int
    given: int = 0

    def next(self) -> int:
        self.given += 1
        return self.said[(self.given - 1) % len(self.said)]


class Echo:
    """The model: says what it was told, at a pace."""

    def __init__(self) -> None:
        self._answers: dict[str, _Answer] = {}
        self._step_seconds = 0.0
        self._over_at = 0.0

    def step(self, scheduled: Any) -> ModelRunnerOutput:
        """Answer a ``SchedulerOutput``. A step is over its time after the one before it at
        the earliest, so what scheduling takes is part of it, as where a GPU's next step is
        scheduled during this one; the first step after a pause takes no time. Requests that
        the scheduler preempts are not known here."""
        for name in scheduled.finished_req_ids:
            self._answers.pop(name, None)
        for new in scheduled.scheduled_new_reqs:
            words = [each for each in new.prompt_token_ids if each >= FIRST_WORD] or [FIRST_WORD]
            count = len(new.prompt_token_ids)
            self._answers[new.req_id] = _Answer(count, words, new.num_computed_tokens)
            self._step_seconds = (new.sampling_params.seed or 0) / 1e6
        names = list(scheduled.num_scheduled_tokens)
        tokens: list[list[int]] = []
        for name, count in scheduled.num_scheduled_tokens.items():
            answer = self._answers[name]
            answer.computed += count
            tokens.append([answer.next()] if answer.computed >= answer.prompt else [])
        if names:
            self._wait()
        return ModelRunnerOutput(names, {name: at for at, name in enumerate(names)}, tokens)

    def _wait(self) -> None:
        now = time.monotonic()
        self._over_at = max(self._over_at, now - self._step_seconds) + self._step_seconds
        time.sleep(self._over_at - now)


class PacedExecutor(UniProcExecutor):  # type: ignore[misc]  # vLLM is untyped here
    """Loads the model, for the engine core asks what it needs, and does not run it."""

    def _init_executor(self) -> None:
        super()._init_executor()
        self._echo = Echo()

    def execute_model(self, scheduler_output: Any, non_block: bool = False) -> Any:
        """As ``Executor.execute_model``."""
        output = self._echo.step(scheduler_output)
        if not non_block:
            return output
        future: Future[ModelRunnerOutput] = Future()
        future.set_result(output)
        return future

    @classmethod
    def supports_async_scheduling(cls) -> bool:
        """On a CPU vLLM schedules a step when the one before it is over."""
        return False
