"""What the load generator itself cost. A figure that is the client's own is worse than none."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from llmserve.loadtest.figures import Record, percentile

_TICK_SECONDS = 0.05
# One thread does the work: above this share of a core, waiting for it shows in latencies.
_BUSY = 0.8
_LATE_SECONDS = 0.01
_STALLED_SECONDS = 0.1
_ENDED_EARLY = 0.9


@dataclass(frozen=True, slots=True)
class Cost:
    """``cpu_share`` of one core; by how much the event loop was late (99 % of the time, and
    at worst); by how much requests were sent later than they were due (99 % of them, and
    at worst; 0 in a closed loop); requests sent twice. Times are seconds."""

    cpu_share: float
    stall_p99: float
    stall_most: float
    late_p99: float
    late_most: float
    resent: int

    def warnings(self) -> dict[str, str]:
        """Which figures cannot be trusted, and why: sentences by their kind."""
        said = {}
        if self.cpu_share > _BUSY:
            said["busy"] = (
                f"The load generator used {self.cpu_share:.0%} of a core: it was a bottleneck. "
                "The figures are those of the client as much as of the server."
            )
        elif self.stall_p99 > _STALLED_SECONDS:
            said["stalled"] = (
                f"The load generator was kept from running for up to {self.stall_most * 1000:.0f} "
                "ms: something else needs the CPU. Latencies are too high."
            )
        if self.late_p99 > _LATE_SECONDS:
            said["late"] = (
                f"The open loop fell behind its schedule (p99 {self.late_p99 * 1000:.0f} ms). "
                "TTFT and E2EL count from the scheduled times and include it."
            )
        if self.resent:
            said["resent"] = (
                f"{self.resent} requests were sent a second time, because the server closed "
                "the kept connection they were sent on."
            )
        return said


class Watch:
    """Measures from ``start`` to ``stop``, on the running event loop."""

    def start(self) -> None:
        """Begin."""
        self._stalls: list[float] = []
        self._begin = time.perf_counter()
        self._cpu = time.process_time()
        self._task = asyncio.get_running_loop().create_task(self._tick())

    async def stop(self, records: Sequence[Record], resent: int) -> Cost:
        """End, and say what it cost to make these requests."""
        cpu, wall = time.process_time() - self._cpu, time.perf_counter() - self._begin
        self._task.cancel()
        await asyncio.wait([self._task])
        stalls = sorted(self._stalls) or [0.0]
        late = sorted(max(each.sent - each.due, 0.0) for each in records) or [0.0]
        return Cost(
            cpu_share=cpu / wall,
            stall_p99=percentile(stalls, 99),
            stall_most=stalls[-1],
            late_p99=percentile(late, 99),
            late_most=late[-1],
            resent=resent,
        )

    async def _tick(self) -> None:
        while True:
            begin = time.perf_counter()
            await asyncio.sleep(_TICK_SECONDS)
            self._stalls.append(time.perf_counter() - begin - _TICK_SECONDS)


def answer_warnings(records: Sequence[Record]) -> dict[str, str]:
    """What answers were that the figures need otherwise: sentences by their kind."""
    done = [each for each in records if each.failure is None]
    uncounted = sum(each.output_tokens is None or each.prompt_tokens is None for each in done)
    if uncounted:
        text = (
            f"{uncounted} of {len(done)} answers came without token counts: token rates and "
            "TPOT are left out. Chunks are never taken for tokens."
        )
        return {"uncounted": text}
    asked = sum(each.asked_tokens for each in done)
    got = sum(each.output_tokens or 0 for each in done)
    if got >= _ENDED_EARLY * asked:
        return {}
    text = (
        f"Answers ended early: {got / len(done):.0f} tokens on average, where "
        f"{asked / len(done):.0f} were allowed. --ignore-eos makes vLLM and llmserve use them all."
    )
    return {"early": text}
