"""New requests begin in turns."""

from __future__ import annotations

import asyncio

from llmserve.http.turnstile import Turnstile


def test_few_pass_in_one_turn_of_the_loop_and_all_in_the_end() -> None:
    async def run() -> list[int]:
        turnstile, turn, passed = Turnstile(2), 0, []

        async def one() -> None:
            await turnstile.enter()
            passed.append(turn)

        tasks = [asyncio.ensure_future(one()) for _ in range(7)]
        tasks[4].cancel()
        while not all(task.done() for task in tasks):
            turn += 1
            await asyncio.sleep(0)
        tasks = [asyncio.ensure_future(one()) for _ in range(3)]
        await asyncio.wait(tasks)
        return passed

    passed = asyncio.run(run())
    assert len(passed) == 6 + 3
    first = passed[:6]
    assert max(map(first.count, first)) <= 2
