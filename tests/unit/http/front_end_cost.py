"""How much CPU time a streamed token costs llmserve, in units of a fixed piece of work.

Run as a program by ``test_front_end_cost``, so that no coverage tracer and no pytest hook is
counted: ``python front_end_cost.py``. Prints JSON: for each route the cost, in units.

The application is called at its ASGI boundary, without sockets. What the scripted engine
costs is in the figure too; it is pure Python and nothing of it hides a change of the front
end by more than its own, constant share.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from llmserve.app import build_app, build_services
from llmserve.engine.fake import FakeEngine, Reply, Script
from llmserve.engine.protocol import Engine, Report
from llmserve.settings import Settings

TOKENS, STREAMS, REPEATS = 200, 10, 9
TEXT = "word " * TOKENS
CHUNK = {
    "id": "chatcmpl-0123456789abcdef",
    "object": "chat.completion.chunk",
    "created": 1_700_000_000,
    "model": "fake",
    "choices": [{"index": 0, "delta": {"content": "word "}, "finish_reason": None}],
}
ROUTES: dict[str, dict[str, Any]] = {
    "/generate/stream": {"prompt": "Hi", "max_tokens": TOKENS, "ignore_eos": True},
    "/v1/chat/completions": {
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": TOKENS,
        "ignore_eos": True,
        "stream": True,
    },
}


async def stream(app: FastAPI, path: str) -> int:
    """One request through the application; the number of bytes it was answered with."""
    content = json.dumps(ROUTES[path]).encode()
    requests = [{"type": "http.request", "body": content, "more_body": False}]
    length, gone = 0, asyncio.Event()

    async def receive() -> dict[str, Any]:
        if requests:
            return requests.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        nonlocal length
        if message["type"] == "http.response.start":
            assert message["status"] == 200
        length += len(message.get("body", b""))

    headers = [(b"content-type", b"application/json"), (b"host", b"127.0.0.1")]
    headers.append((b"content-length", str(len(content)).encode()))
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
        "state": {},
    }
    await app(scope, receive, send)  # type: ignore[arg-type]
    assert length > TOKENS * len(b'data: {"text":"word "}'), "that was no stream"
    return length


def unit(count: int) -> None:
    """The fixed piece of work: one chunk of a chat as JSON, there and back."""
    for _ in range(count):
        json.loads(json.dumps(CHUNK))


async def cpu(work: Callable[[], Any]) -> float:
    """CPU seconds of this thread."""
    begin = time.thread_time()
    found = work()
    if found is not None:
        await found
    return time.thread_time() - begin


async def measure(folder: Path) -> dict[str, float]:
    """The cheapest of ``REPEATS`` runs of each route, over the cheapest of the unit; both in
    turns, so that a slow moment of the machine meets both."""
    script = Script(replies=(Reply("", TEXT),), max_running=STREAMS)

    async def make(_: Report) -> Engine:
        return FakeEngine(script)

    settings = Settings.model_validate({"runtime": {"engine": "fake"}})
    services = build_services(settings, make, state_path=folder / "state.db")
    app = build_app(services)
    least = dict.fromkeys([*ROUTES, ""], float("inf"))
    async with app.router.lifespan_context(app):
        while not services.supervisor.ready:  # noqa: ASYNC110  # once, at the start
            await asyncio.sleep(0.01)
        for _ in range(REPEATS):
            least[""] = min(least[""], await cpu(lambda: unit(TOKENS * STREAMS)))
            for path in ROUTES:
                used = await cpu(
                    lambda path=path: asyncio.gather(*(stream(app, path) for _ in range(STREAMS)))  # type: ignore[misc]
                )
                least[path] = min(least[path], used)
    return {path: least[path] / least[""] for path in ROUTES}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        json.dump(asyncio.run(measure(Path(name))), sys.stdout)
