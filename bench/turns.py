"""The client's turns on a core.

vLLM's engine and worker spin while they wait, so on a machine with few cores everybody else
stands in line; a client that does is late to read and late to ask, and what it measures is
its own waiting. (On two cores: 2.8 s in the line for 0.08 s of work, and 500 tokens/s where
a moment later there were 2,500.) So the client goes before everybody else where the system
lets it, and says how long it waited all the same.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def go_first() -> bool:
    """Take this process before all ordinary ones; what it starts is ordinary again. False
    where that is not allowed, or not known."""
    try:
        policy = os.SCHED_RR | os.SCHED_RESET_ON_FORK
        os.sched_setscheduler(0, policy, os.sched_param(os.sched_get_priority_min(os.SCHED_RR)))
    except (AttributeError, OSError):
        return False
    return True


def waited_seconds() -> float:
    """How long this thread has been ready and had no core, all in all; 0 where Linux does
    not count it (``/proc/thread-self/schedstat``: nanoseconds run, waited, times)."""
    with suppress(OSError):
        return int(Path("/proc/thread-self/schedstat").read_text("ascii").split()[1]) / 1e9
    return 0.0
