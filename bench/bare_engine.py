"""The bare engine in a process of its own: ``AsyncLLM.generate`` and nothing around it.

Run by ``added`` and ``floor`` with the same arguments as the servers. A line of JSON on
standard input (``_Asked``) is answered by a line with the time to the first text of each
prompt, in seconds. It ends when its input ends.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from bench.client import BenchError
from bench.programs import Program
from bench.servers import vllm_arguments
from bench.values import BARE

TOKENS = 4


class _Asked(msgspec.Struct):
    """Prompts as token ids, the length of each answer, and how many are asked at once."""

    prompts: Sequence[Sequence[int]]
    tokens: int
    at_once: int


class BareEngine(Program):
    """The handle on such a process."""

    def __init__(self, model: Path, arguments: Mapping[str, Any], log: Path) -> None:
        given = vllm_arguments(model, arguments)
        command = [sys.executable, "-m", "bench.bare_engine", *given]
        super().__init__(BARE, command, log, pipes=True)

    def ask(
        self, prompts: Sequence[Sequence[int]], tokens: int = TOKENS, at_once: int = 1
    ) -> list[float]:
        """Times to first text of these prompts. Blocks."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            asked = _Asked(prompts, tokens, at_once)
            self.process.stdin.write(msgspec.json.encode(asked) + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError as error:
            raise BenchError(self.state()) from error
        line = self.process.stdout.readline()
        if not line:
            raise BenchError(self.state())
        return msgspec.json.decode(line, type=list[float])


async def _serve(words: list[str]) -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser
    from vllm.v1.engine.async_llm import AsyncLLM

    # Standard output carries the answers: whatever else is printed goes to the log.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    given = make_arg_parser(FlexibleArgumentParser()).parse_args(words)
    engine = AsyncLLM.from_engine_args(AsyncEngineArgs.from_cli_args(given))
    try:
        gc.collect()
        gc.freeze()  # as both servers do
        while line := await asyncio.to_thread(sys.stdin.readline):
            times = await _answer(engine, msgspec.json.decode(line, type=_Asked))
            answers.write(json.dumps(times) + "\n")
            answers.flush()
    finally:
        engine.shutdown()


async def _answer(engine: Any, asked: _Asked) -> list[float]:
    times = [0.0] * len(asked.prompts)
    waiting = enumerate(asked.prompts)

    async def work() -> None:
        for number, prompt in waiting:
            times[number] = await _first_text(engine, prompt, asked.tokens, str(number))

    await asyncio.gather(*(work() for _ in range(asked.at_once)))
    return times


async def _first_text(engine: Any, prompt: Sequence[int], tokens: int, name: str) -> float:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    sampling = SamplingParams(
        max_tokens=tokens,
        temperature=0,
        ignore_eos=True,
        output_kind=RequestOutputKind.DELTA,
    )
    begin, first = time.perf_counter(), 0.0
    async for output in engine.generate({"prompt_token_ids": prompt}, sampling, name):
        if not first and output.outputs[0].text:
            first = time.perf_counter() - begin
    return first


if __name__ == "__main__":
    uvloop.run(_serve(sys.argv[1:]))
