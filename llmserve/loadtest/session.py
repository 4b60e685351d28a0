"""The whole run: prepare, then every step in every round."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Sequence
from typing import Protocol

from llmserve.loadtest.figures import Record, figures
from llmserve.loadtest.load import Step
from llmserve.loadtest.plan import LoadTestFailed, Plan
from llmserve.loadtest.preflight import first_model, source_of_prompts, warm_up
from llmserve.loadtest.prompts import Prompts
from llmserve.loadtest.results import Result, Sample
from llmserve.loadtest.selfwatch import Watch, answer_warnings
from llmserve.loadtest.target import Target

_LOOK_SECONDS = 0.25


class Progress(Protocol):
    """Is told how far a run is. Its calls are made while the clock runs: they are few."""

    def begin(self, target: int, level: float, number: int) -> None:
        """A step begins in this round."""

    def look(self, step: Step) -> None:
        """Some more of it has been done."""

    def end(self, sample: Sample) -> None:
        """The step is over."""


async def run(plan: Plan, progress: Progress) -> Result:
    """Run the plan. Raises ``LoadTestFailed`` when a server does not answer the first
    requests as it should, or when not one request of the whole run was completed."""
    begin = time.perf_counter()
    targets = [Target(each, plan.endpoint, plan.body) for each in plan.addresses]
    try:
        for target, address in zip(targets, plan.addresses, strict=True):
            target.model = address.model or await first_model(target)
        prompts, scale = await source_of_prompts(plan, targets[0])
        for target in targets:
            await warm_up(plan, target, prompts)
        samples = await _measure(plan, targets, prompts, progress)
    finally:
        for target in targets:
            target.pool.close()
    result = Result(
        plan=plan,
        urls=tuple(each.url for each in targets),
        models=tuple(str(each.model) for each in targets),
        scale=scale,
        samples=tuple(samples),
        seconds=time.perf_counter() - begin,
    )
    if not any(each.figures.completed for each in samples):
        kinds = {kind: None for each in samples for kind in each.figures.failures}
        raise LoadTestFailed(
            f"Not one request was completed: {', '.join(kinds) or 'none was due'}."
        )
    return result


async def _measure(
    plan: Plan, targets: Sequence[Target], prompts: Prompts, progress: Progress
) -> list[Sample]:
    """Each level in turn, and at each level the rounds: A B A B. Both servers of a round get
    the same prompts at the same times, and no round gets those of another."""
    samples: list[Sample] = []
    index = 0
    for level in plan.load.levels:
        for number in range(plan.rounds):
            most = 0
            for which, target in enumerate(targets):
                progress.begin(which, level, number)
                step = Step(
                    target,
                    prompts,
                    plan.load,
                    level,
                    first_index=index,
                    timeout=plan.timeout,
                    seed=plan.seed + index,
                )
                sample = await _sample(plan, step, progress, (which, level, number))
                progress.end(sample)
                samples.append(sample)
                most = max(most, len(step.records))
            index += most
    return samples


def _repeated(prompts: Prompts, records: Sequence[Record]) -> dict[str, str]:
    """Whether prompts were sent that the server has seen before."""
    last = max((each.index for each in records), default=0)
    if prompts.distinct is None or last < prompts.distinct:
        return {}
    text = (
        f"The file holds {prompts.distinct:,} prompts that can be used, which were sent again "
        "from the first on: a prefix cache has known them."
    )
    return {"repeated": text}


async def _sample(
    plan: Plan, step: Step, progress: Progress, where: tuple[int, float, int]
) -> Sample:
    # What exists by now is not looked through by the collector while the clock runs.
    gc.collect()
    gc.freeze()
    watch, resent = Watch(), step.target.pool.resent
    watch.start()
    running = asyncio.create_task(step.run())
    try:
        while not (await asyncio.wait([running], timeout=_LOOK_SECONDS))[0]:
            progress.look(step)
        await running
    finally:
        running.cancel()
        gc.unfreeze()
        cost = await watch.stop(step.records, step.target.pool.resent - resent)
    which, level, number = where
    return Sample(
        target=which,
        level=level,
        round=number,
        figures=figures(step.records, step.begin, plan.objectives),
        cost=cost,
        warnings=cost.warnings()
        | answer_warnings(step.records)
        | _repeated(step.prompts, step.records),
        begin=step.begin,
        records=step.records,
    )
