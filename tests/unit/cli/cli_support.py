"""The command line as a subprocess, and a small scripted server for it to talk to."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Run = Callable[..., subprocess.CompletedProcess[str]]


def clean_environment(**more: str) -> dict[str, str]:
    """This process's environment without any variable of ours."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("LLMSERVE_")}
    return ours | {"COLUMNS": "80"} | more


@dataclass
class Reply:
    """What the scripted server answers. ``then``: ``end`` normally, ``cut`` the
    connection, or ``hold`` it open until the client goes away."""

    chunks: list[bytes]
    status: int = 200
    kind: str = "text/event-stream"
    then: str = "end"

    @classmethod
    def json(cls, value: Any, status: int = 200) -> Reply:
        return cls([json.dumps(value).encode()], status, "application/json")


@dataclass
class Stub:
    """The scripted server: replies by path (the last one repeats) and what was asked."""

    url: str
    replies: dict[str, list[Reply]] = field(default_factory=dict)
    seen: list[tuple[str, dict[str, str], Any]] = field(default_factory=list)
    gone: threading.Event = field(default_factory=threading.Event)

    def on(self, path: str, *replies: Reply) -> None:
        self.replies[path] = list(replies)

    def bodies(self, path: str) -> list[Any]:
        return [body for seen, _, body in self.seen if seen == path]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message["body"]
            if not message["more_body"]:
                break
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.seen.append((scope["path"], headers, json.loads(body) if body else None))
        queue = self.replies.get(scope["path"]) or [Reply.json({"detail": "Not Found"}, 404)]
        reply = queue.pop(0) if len(queue) > 1 else queue[0]
        kind = [(b"content-type", reply.kind.encode())]
        await send({"type": "http.response.start", "status": reply.status, "headers": kind})
        for chunk in reply.chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        if reply.then == "cut":
            raise ConnectionError("the script cuts the connection here")
        if reply.then == "hold":
            while (await receive())["type"] != "http.disconnect":
                pass
            self.gone.set()
        await send({"type": "http.response.body", "body": b""})


def sse(*events: Any, name: str | None = None) -> list[bytes]:
    """Each value as one event; a text is sent as it is."""
    prefix = f"event: {name}\n" if name else ""
    texts = [event if isinstance(event, str) else json.dumps(event) for event in events]
    return [f"{prefix}data: {text}\n\n".encode() for text in texts]
