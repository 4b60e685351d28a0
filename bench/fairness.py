"""One key floods with long prompts: what does the other key feel? ``python -m bench.fairness``.

Starts llmserve with the demo model, measures the time to first token of a quiet key, first
alone, then beside a flood, in alternating rounds, and draws it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import click
import httpx

QUIET_WORDS, FLOOD_WORDS = 150, 1100
FLOODERS = 16
ARGS = (
    # Two places, of which one key alone gets one: the other key's request always starts at
    # once. The engine then splits each of its steps between the two.
    "admission.max_running=2",
    "admission.reserved_share=0.5",
    "admission.max_queue=64",
    "engine.enforce_eager=true",
    "engine.max_num_batched_tokens=512",
    "engine.long_prefill_token_threshold=128",
    "logging.access=false",
)
WORDS = ("river", "stone", "lamp", "garden", "window", "table", "morning", "letter", "bridge")


@dataclass
class Figures:
    """Times to first token of the quiet key, in seconds, and the flood's replies by
    status."""

    alone: list[float] = field(default_factory=list)
    flooded: list[float] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """p95 beside the flood over p95 alone."""
        return p95(self.flooded) / p95(self.alone)


def p95(values: list[float]) -> float:
    """The value below which 95 % lie."""
    return statistics.quantiles(values, n=20, method="inclusive")[18]


async def measure(url: str, quiet: str, flood: str, rounds: int, each: int) -> Figures:
    """Alternate: ``each`` requests of the quiet key alone, as many beside the flood."""
    figures, chance = Figures(), random.Random(5)  # noqa: S311  # prompts
    async with httpx.AsyncClient(base_url=url, timeout=300) as client:
        await _ttft(client, quiet, chance)
        for _ in range(rounds):
            for _ in range(each):
                figures.alone.append(await _ttft(client, quiet, chance))
            async with _flood(url, flood, figures):
                for _ in range(each):
                    figures.flooded.append(await _ttft(client, quiet, chance))
    return figures


async def _ttft(client: httpx.AsyncClient, key: str, chance: random.Random) -> float:
    """A request that nobody has asked before, so that no cache helps."""
    body = {"prompt": _prompt(chance, QUIET_WORDS), "max_tokens": 4, "ignore_eos": True}
    headers = {"authorization": f"Bearer {key}"}
    start = time.perf_counter()
    async with client.stream("POST", "/generate/stream", json=body, headers=headers) as reply:
        reply.raise_for_status()
        first = None
        async for line in reply.aiter_lines():
            if first is None and line.startswith("event: token"):
                first = time.perf_counter() - start
            if line.startswith("event: error"):
                raise RuntimeError("the quiet key's request failed")
    assert first is not None
    return first


@contextlib.asynccontextmanager
async def _flood(url: str, key: str, figures: Figures) -> AsyncIterator[None]:
    """Callers that send long prompts without a pause, and never wait when refused."""
    async with httpx.AsyncClient(base_url=url, timeout=300) as client:
        tasks = [
            asyncio.create_task(_flooder(client, key, figures, random.Random(number)))  # noqa: S311
            for number in range(FLOODERS)
        ]
        await asyncio.sleep(2)
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)


async def _flooder(
    client: httpx.AsyncClient, key: str, figures: Figures, chance: random.Random
) -> None:
    headers = {"authorization": f"Bearer {key}"}
    while True:
        body = {"prompt": _prompt(chance, FLOOD_WORDS), "max_tokens": 16, "ignore_eos": True}
        reply = await client.post("/generate", json=body, headers=headers)
        figures.statuses[reply.status_code] = figures.statuses.get(reply.status_code, 0) + 1
        await asyncio.sleep(0 if reply.is_success else 0.2)


def _prompt(chance: random.Random, words: int) -> str:
    return " ".join(chance.choices(WORDS, k=words))


@contextlib.contextmanager
def server(model: str = "demo") -> Iterator[tuple[str, dict[str, str]]]:
    """A server with two keys; its URL and the keys."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        env = os.environ | {"XDG_STATE_HOME": folder}
        keys = {name: _key(name, env) for name in ("quiet", "flood")}
        sets = [word for setting in ARGS for word in ("--set", setting)]
        command = [sys.executable, "-m", "llmserve", "serve", model, "--port", str(port), *sets]
        process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)  # noqa: S603
        try:
            _wait_ready(f"http://127.0.0.1:{port}", process)
            yield f"http://127.0.0.1:{port}", keys
        finally:
            process.terminate()
            process.wait(60)


def _key(name: str, env: dict[str, str]) -> str:
    command = [sys.executable, "-m", "llmserve", "keys", "create", name, "--json"]
    made = subprocess.run(command, env=env, check=True, capture_output=True)  # noqa: S603
    return str(json.loads(made.stdout)["key"])


def _wait_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(3000):
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}")
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/readyz").status_code == 200:
                return
        time.sleep(0.1)
    raise RuntimeError("the server is not ready after five minutes")


def draw(figures: Figures) -> str:
    """Both distributions as steps, time across, share of requests up: an SVG."""
    width, height, left, bottom = 640, 300, 60, 50
    longest = max(*figures.alone, *figures.flooded) * 1.05

    def steps(values: list[float]) -> str:
        points = []
        for number, value in enumerate(sorted(values), 1):
            x = left + (width - left - 20) * value / longest
            y = height - bottom - (height - bottom - 30) * number / len(values)
            points.append(f"{x:.1f},{y:.1f}")
        return " ".join(points)

    ticks = "".join(
        f'<text x="{left + (width - left - 20) * part / 4:.0f}" y="{height - 30}" '
        f'text-anchor="middle">{longest * part / 4 * 1000:.0f}</text>'
        for part in range(5)
    )
    title = f"p95: {p95(figures.alone) * 1000:.0f} ms alone, {p95(figures.flooded) * 1000:.0f} ms"
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"
 font-family="sans-serif" font-size="12" fill="#555">
<rect width="{width}" height="{height}" fill="#fff"/>
<text x="{left}" y="18">{title} beside a flood ({figures.ratio:.2f} times)</text>
<line x1="{left}" y1="{height - bottom}" x2="{width - 20}" y2="{height - bottom}" stroke="#999"/>
<line x1="{left}" y1="30" x2="{left}" y2="{height - bottom}" stroke="#999"/>
<text x="10" y="36">100 %</text><text x="24" y="{height - bottom}">0 %</text>
{ticks}<text x="{width / 2:.0f}" y="{height - 8}" text-anchor="middle">time to first token of the
 quiet key, ms</text>
<polyline fill="none" stroke="#2a7" stroke-width="2" points="{steps(figures.alone)}"/>
<polyline fill="none" stroke="#c52" stroke-width="2" points="{steps(figures.flooded)}"/>
<text x="{width - 150}" y="{height - 90}" fill="#2a7">alone</text>
<text x="{width - 150}" y="{height - 72}" fill="#c52">beside a flood</text>
</svg>
"""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rounds", default=4, show_default=True, type=click.IntRange(1))
@click.option("--each", default=15, show_default=True, type=click.IntRange(2))
@click.option("--model", default="demo", show_default=True)
@click.option("--svg", type=click.Path(path_type=Path, dir_okay=False), help="Draw it here.")
def main(rounds: int, each: int, model: str, svg: Path | None) -> None:
    """Measure what a quiet key feels of another key's flood (goal: p95 within twice)."""
    with server(model) as (url, keys):
        figures = asyncio.run(measure(url, keys["quiet"], keys["flood"], rounds, each))
    for name, values in (("alone", figures.alone), ("beside a flood", figures.flooded)):
        median = statistics.median(values)
        click.echo(f"{name}: p50 {median * 1000:.0f} ms, p95 {p95(values) * 1000:.0f} ms")
    click.echo(f"p95 ratio: {figures.ratio:.2f}; the flood's replies by status: {figures.statuses}")
    if svg is not None:
        svg.write_text(draw(figures))


if __name__ == "__main__":
    main()
