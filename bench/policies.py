"""What all policies together add to a request: ``python -m bench.policies``.

One process, no sockets: the same scripted engine answers one-token requests bare and
behind the gateway, interleaved, so that the difference is what keys, limits, admission,
deadlines, the list of requests, accounting, usage and metrics cost in CPU time.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path

import click
import uvloop
from rich.console import Console
from rich.table import Table

from llmserve.app import account, build_services
from llmserve.engine.fake import FakeEngine, Reply, Script
from llmserve.engine.protocol import Engine, Report
from llmserve.gateway.demand import Demand
from llmserve.gateway.entry import Entry
from llmserve.services import Services
from llmserve.settings import Settings
from llmserve.state import ApiKey
from llmserve.state.secrets import digest, new_key
from llmserve.types import Chunk, GenerateRequest, Limits, Meter, Outcome, Sampling, Scope

SCRIPT = Script(replies=(Reply("", "x"),))
REQUEST = GenerateRequest("id", prompt="Hi", sampling=Sampling(max_tokens=1))
LIMITS = Limits(10**9, 10**12, 10**6, 10**15)
Ask = Callable[[], Awaitable[None]]


async def _drain(chunks: AsyncGenerator[Chunk, None]) -> None:
    async with aclosing(chunks):
        async for _ in chunks:
            pass


async def _services(folder: Path) -> tuple[Services, dict[str, str]]:
    """A wired server without sockets, and a key with and one without limits."""
    engine = FakeEngine(SCRIPT)

    async def make(_: Report) -> Engine:
        return engine

    settings = Settings.model_validate({"runtime": {"engine": "fake"}})
    services = build_services(settings, make, state_path=folder / "state.db")
    keys = {}
    for name, limits in (("free", Limits()), ("limited", LIMITS)):
        keys[name] = new_key()
        scopes = frozenset({Scope.INFER})
        key = ApiKey(name, name, name, time.time(), scopes=scopes, limits=limits)
        services.store.create_key(key, digest(keys[name]))
    services.authenticator.refresh()
    return services, keys


def _behind_the_gateway(services: Services, key: str) -> Ask:
    """One request through every policy, as the routes put it together."""

    async def ask() -> None:
        entry = Entry("id", "/generate")
        entry.caller = services.authenticator.authenticate(f"Bearer {key}", None)
        target = services.gateway.route(entry, None, "")
        await _drain(services.gateway.generate(entry, target, REQUEST, Demand(1, 1)))
        entry.end(Outcome.COMPLETED)
        services.metrics.closed(entry)
        account(services.usage, entry)

    return ask


def _bare(services: Services) -> Ask:
    """The same request to the engine alone."""

    async def ask() -> None:
        await _drain(services.supervisor.engine().generate(REQUEST, Meter()))

    return ask


async def _measure(rounds: int, requests: int) -> dict[str, list[float]]:
    """CPU microseconds for a request, by round."""
    with tempfile.TemporaryDirectory() as folder:
        services, keys = await _services(Path(folder))
        supervising = asyncio.create_task(services.supervisor.run())
        while not services.supervisor.ready:  # noqa: ASYNC110  # once, at the start
            await asyncio.sleep(0.01)
        kinds = {
            "bare engine": _bare(services),
            "all policies, a key without limits": _behind_the_gateway(services, keys["free"]),
            "all policies, a key with every limit": _behind_the_gateway(services, keys["limited"]),
        }
        figures: dict[str, list[float]] = {name: [] for name in kinds}
        for _ in range(rounds):
            for name, ask in kinds.items():
                begin = time.process_time_ns()
                for _ in range(requests):
                    await ask()
                figures[name].append((time.process_time_ns() - begin) / requests / 1000)
        supervising.cancel()
        await services.supervisor.aclose()
        services.store.close()
    return figures


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rounds", default=9, show_default=True, type=click.IntRange(1))
@click.option("--requests", default=3000, show_default=True, type=click.IntRange(1))
def main(rounds: int, requests: int) -> None:
    """Measure what the policies add to a request (goal: under 100 microseconds)."""
    figures = uvloop.run(_measure(rounds, requests))
    bare = statistics.median(figures["bare engine"])
    table = Table("", "µs a request, median", "added", box=None)
    for name, values in figures.items():
        median = statistics.median(values)
        table.add_row(name, f"{median:.1f}", f"{median - bare:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
