"""A scripted server of streams: known delays, known failures, nothing else."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Answer:
    """How one request is answered. ``cut_after`` and ``error_after`` are counts of tokens;
    ``hang`` stops for good after the head. Times are seconds."""

    tokens: int = 4
    first: float = 0.0
    gap: float = 0.0
    status: int = 200
    role: bool = True
    usage: bool = True
    done: bool = True
    hang: bool = False
    cut_after: int | None = None
    error_after: int | None = None
    kind: str = "text/event-stream; charset=utf-8"
    close: bool = False
    line_end: str = "\n"


Script = Callable[[int, dict[str, Any]], Answer]


@dataclass
class Server:
    """A running server. ``script`` gets the number of a request, from 0, and its body."""

    script: Script
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    connections: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while await self._one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        if head.startswith("GET"):
            self._reply(writer, 200, {"object": "list", "data": [{"id": "scripted"}]})
            return True
        length = int(head.lower().split("content-length:")[1].split()[0])
        body = json.loads(await reader.readexactly(length))
        answer = self.script(len(self.bodies), body)
        self.bodies.append(body)
        self.heads.append(head)
        if answer.status != 200:
            said = {"error": {"message": "The script says no.", "type": "x"}}
            self._reply(writer, answer.status, said)
            return True
        return await self._stream(writer, body, answer)

    def _reply(self, writer: asyncio.StreamWriter, status: int, value: Any) -> None:
        data = json.dumps(value).encode()
        writer.write(
            f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(data)}\r\n\r\n".encode()
            + data
        )

    async def _stream(
        self, writer: asyncio.StreamWriter, body: dict[str, Any], answer: Answer
    ) -> bool:
        def send(text: str) -> None:
            data = text.replace("\n", answer.line_end).encode()
            writer.write(b"%x\r\n%s\r\n" % (len(data), data))

        chat = "messages" in body
        writer.write(
            f"HTTP/1.1 200 OK\r\nContent-Type: {answer.kind}\r\n"
            "Transfer-Encoding: chunked\r\n\r\n".encode()
        )
        if answer.hang:
            await asyncio.sleep(3600)
        if chat and answer.role:
            send(event(delta={"role": "assistant", "content": ""}))
        for number in range(answer.tokens):
            await asyncio.sleep(answer.gap if number else answer.first)
            if number == answer.cut_after:
                return False
            if number == answer.error_after:
                send('data: {"error": {"message": "it broke", "code": 500}}\n\n')
                break
            last = number == answer.tokens - 1
            word = {"delta": {"content": f" w{number}"}} if chat else {"text": f" w{number}"}
            send(event(**word, finish_reason="length" if last else None))
            await writer.drain()
        if answer.usage and answer.error_after is None:
            prompt = body["prompt"] if "prompt" in body else body["messages"][0]["content"]
            counted = {"prompt_tokens": 5 + 2 * len(prompt.split()), "completion_tokens": 10}
            send(f"data: {json.dumps({'choices': [], 'usage': counted})}\n\n")
        if answer.done:
            send("data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return not answer.close


def event(finish_reason: str | None = None, **choice: Any) -> str:
    """One chunk as an event."""
    choices = [{"index": 0, **choice, "finish_reason": finish_reason}]
    return f"data: {json.dumps({'id': 'x', 'choices': choices})}\n\n"


@contextmanager
def scripted(script: Script | Answer = Answer()) -> Iterator[Server]:
    """Run a server with one answer for all, or with a script."""
    server = Server(script if callable(script) else lambda _number, _body: script)
    loop = asyncio.new_event_loop()
    started = threading.Event()
    stop: list[asyncio.Event] = []

    async def run() -> None:
        stop.append(asyncio.Event())
        listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
        server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        started.set()
        await stop[0].wait()
        listening.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for each in others:
            each.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()
    try:
        assert started.wait(10)
        yield server
    finally:
        loop.call_soon_threadsafe(stop[0].set)
        thread.join(10)
        loop.close()
