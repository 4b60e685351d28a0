"""``python -m bench.modelfile_server``: looking into models inside a serving process.

Two questions: what an answer from the cache costs, and how long the event loop (and with it
every stream) stops while a 70B-class file is described, by the worker process as the server
does it and, for comparison, in a thread of the same process. Both take turns in one run.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median, quantiles

import click
from rich.console import Console
from rich.table import Table

from bench.modelfile import write_large
from llmserve.catalog.catalog import Catalog
from llmserve.modelfile import describe
from llmserve.settings import Settings

ROUNDS = 10
ASKED = 500


async def gaps(work: Callable[[], Awaitable[object]]) -> list[float]:
    """How late the event loop wakes up while ``work`` runs, in milliseconds."""
    task, found = asyncio.ensure_future(work()), []
    while not task.done():
        start = time.perf_counter()
        await asyncio.sleep(0.001)
        found.append((time.perf_counter() - start) * 1e3 - 1)
    await task
    return found


async def measure(path: Path) -> dict[str, list[float]]:
    settings = {"catalog": {"folders": [str(path.parent)], "hub_cache": False}}
    catalog = Catalog(Settings.model_validate(settings))
    found: dict[str, list[float]] = {name: [] for name in ("idle", "worker", "thread", "cached")}

    async def worker() -> None:
        await catalog.ask(path.name, "summary", {})

    async def thread() -> None:
        await asyncio.to_thread(describe, path)

    try:
        await worker()
        for turn in range(ROUNDS):
            os.utime(path, ns=(turn, turn))  # another identity: nothing is in the cache
            found["worker"].append(max(await gaps(worker)))
            found["thread"].append(max(await gaps(thread)))
            found["idle"].append(max(await gaps(lambda: asyncio.sleep(0.05))))
        for _ in range(ASKED):
            start = time.perf_counter()
            await worker()
            found["cached"].append((time.perf_counter() - start) * 1e3)
    finally:
        await catalog.aclose()
    return found


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Measure what looking into models costs the streams beside it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.gguf"
        write_large(path)
        found = asyncio.run(measure(path))
    table = Table("what", "median, ms", "p90, ms", "goal, ms", title="In the serving process")
    for name, what, goal in (
        ("cached", "answer from the cache", "1"),
        ("worker", "longest gap, describing in the worker", "5"),
        ("thread", "longest gap, describing in a thread", ""),
        ("idle", "longest gap, nothing to do", ""),
    ):
        values = found[name]
        table.add_row(what, f"{median(values):.2f}", f"{quantiles(values, n=10)[-1]:.2f}", goal)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
