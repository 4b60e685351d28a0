"""How the cost of a piece of work grows with its input, for bounds that hold on any machine.

A bound in seconds says as much about the machine and the tracer of a coverage run as about
the code. A ratio of two CPU times does not: both are measured here, in turns, and the
cheapest of several counts, since noise only ever adds.
"""

from __future__ import annotations

import time
from collections.abc import Callable

ROUNDS = 5


def cpu_ratio(work: Callable[[], object], reference: Callable[[], object]) -> float:
    """CPU time of ``work`` divided by that of ``reference``. What takes at least some
    milliseconds can be compared."""
    best = [float("inf"), float("inf")]
    for _ in range(ROUNDS):
        for place, call in enumerate((work, reference)):
            start = time.process_time()
            call()
            best[place] = min(best[place], time.process_time() - start)
    return best[0] / best[1]
