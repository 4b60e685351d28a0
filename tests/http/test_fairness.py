"""One key floods with long prompts; the other hardly notices."""

from __future__ import annotations

import asyncio

from bench.fairness import measure
from llmserve.engine.fake import Script
from tests.http.harness import running

ADMISSION = {"max_running": 4, "max_queue": 16}


def test_a_flood_does_not_raise_the_time_to_first_token_of_others() -> None:
    script = Script(prefill_seconds=0.15, seconds_per_token=0.01, max_running=4)
    with running(script, admission=ADMISSION) as app:
        quiet, flood = app.key("quiet"), app.key("flood")
        figures = asyncio.run(measure(app.url, quiet, flood, rounds=2, each=10))
    assert figures.ratio < 2, (figures.alone, figures.flooded)
    assert figures.statuses.get(200, 0) > 10, "the flood was served as well"
