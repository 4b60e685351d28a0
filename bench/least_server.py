"""The least server: HTTP by uvicorn, JSON, the tokenizer, ``AsyncLLM.generate``, and nothing
around them.

No key, no limit, no template, no validation, no metric of its own, and no error either. What
it costs is what a server costs that gives vLLM's engine client a front door in Python and
does nothing else; the goals are read against it (``floor``, ``added``).
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import uvicorn

from bench.servers import Server, vllm_arguments

LEAST = "least server"
PART = '{"choices":[{"index":0,"delta":{"content":%s},"text":%s,"finish_reason":%s}]%s}'
WHOLE = '{"choices":[{"index":0,"message":{"content":%s},"text":%s,"finish_reason":%s}]%s}'
encode, decode = msgspec.json.Encoder().encode, msgspec.json.decode


def start_least(model: Path, arguments: Mapping[str, Any], logs: Path) -> Server:
    """Start it, without waiting."""
    command = [sys.executable, "-m", "bench.least_server", *vllm_arguments(model, arguments)]
    return Server(LEAST, command, "/health", logs / "least.log")


class App:
    """An ASGI application around an engine that starts with it."""

    def __init__(self, given: Any) -> None:
        self._given = given
        self._engine: Any = None
        self._count = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["method"] == "GET":
            await _send(send, b"{}")
        else:
            body, more = b"", True
            while more:
                message = await receive()
                body, more = body + message["body"], message["more_body"]
            await self._answer(decode(body), send)

    async def _live(self, receive: Any, send: Any) -> None:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        await receive()
        self._engine = AsyncLLM.from_engine_args(AsyncEngineArgs.from_cli_args(self._given))
        self._tokenizer = self._engine.renderer.tokenizer._tokenizer
        gc.collect()
        gc.freeze()  # as both servers do
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self._engine.shutdown()
        await send({"type": "lifespan.shutdown.complete"})

    async def _answer(self, body: dict[str, Any], send: Any) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        stream = body.get("stream", False)
        text = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
        (encoding,) = self._tokenizer.encode_batch_fast([text])
        kind = RequestOutputKind.DELTA if stream else RequestOutputKind.FINAL_ONLY
        sampling = SamplingParams(
            max_tokens=body["max_tokens"], temperature=0, ignore_eos=True, output_kind=kind
        )
        self._count += 1
        prompt = {"prompt_token_ids": encoding.ids}
        outputs = self._engine.generate(prompt, sampling, str(self._count))
        if not stream:
            (output,) = [each async for each in outputs]
            await _send(send, _json(WHOLE, output.outputs[0], body["max_tokens"]))
            return
        await _begin(send, b"text/event-stream")
        async for output in outputs:
            frame = b"data: " + _json(PART, output.outputs[0], body["max_tokens"]) + b"\n\n"
            await send({"type": "http.response.body", "body": frame, "more_body": True})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


def _json(shape: str, choice: Any, tokens: int) -> bytes:
    text = encode(choice.text).decode()
    usage = f',"usage":{{"completion_tokens":{tokens}}}' if choice.finish_reason else ""
    return (shape % (text, text, encode(choice.finish_reason).decode(), usage)).encode()


async def _begin(send: Any, kind: bytes, more: tuple[tuple[bytes, bytes], ...] = ()) -> None:
    headers = [(b"content-type", kind), *more]
    await send({"type": "http.response.start", "status": 200, "headers": headers})


async def _send(send: Any, content: bytes) -> None:
    await _begin(send, b"application/json", ((b"content-length", b"%d" % len(content)),))
    await send({"type": "http.response.body", "body": content})


def _main() -> None:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    given = make_arg_parser(FlexibleArgumentParser()).parse_args()
    uvicorn.run(
        App(given), port=given.port, loop="uvloop", http="httptools", log_level="error", ws="none"
    )


if __name__ == "__main__":
    _main()
