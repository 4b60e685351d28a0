"""A guard: the front end's CPU time per streamed token, as a ratio. The real measurement is
``make bench``.

Why it does not flake. It is CPU time, not time on a clock: other processes only slow it down
by what they do to the caches. It is divided by a fixed piece of work that the same thread
does in the same run, so the machine's speed cancels. Both are the cheapest of nine runs in
turns, and noise only ever adds. It runs in a process of its own, without the tracer of a
coverage run. On a machine with twice as many busy processes as cores, repeated runs differ by
1 %; the bound leaves 40 %, for other versions of Python and of the libraries.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROUTES = ("/generate/stream", "/v1/chat/completions")
LOOKS = 3
"""Noise only adds, so the least of several runs is the truest; a machine that was slow for
the whole of one of them has been seen."""

MOST_UNITS = 3.6
"""Units (a chat chunk to JSON and back, about 8 microseconds) for each token, the scripted
engine's own work included. It is 2.4 and 2.6: the room is for one pydantic object for each
token, and not for two."""


@pytest.fixture(scope="module")
def costs() -> dict[str, float]:
    """The least of up to ``LOOKS`` runs."""
    least = dict.fromkeys(ROUTES, float("inf"))
    for _ in range(LOOKS):
        for route, cost in measured().items():
            least[route] = min(least[route], cost)
        if max(least.values()) < MOST_UNITS:
            break
    return least


def measured() -> dict[str, float]:
    program = Path(__file__).with_name("front_end_cost.py")
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found: dict[str, float] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("path", ROUTES)
def test_a_streamed_token_costs_little(costs: dict[str, float], path: str) -> None:
    assert costs[path] < MOST_UNITS
