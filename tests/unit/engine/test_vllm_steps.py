"""The engine core's messages over a real socket, with vLLM's own handler behind ours."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

import zmq
import zmq.asyncio
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, UtilityOutput
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.core import EngineCoreProc
from vllm.v1.engine.core_client import AsyncMPClient, BackgroundResources
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.engine.output_processor import OutputProcessorOutput
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder, UtilityResult

from llmserve.engine.vllm.steps import Steps

pytestmark = pytest.mark.anyio

CHUNK = 128


class Engine:
    """Everything around ``Steps``: vLLM's client and handler as far as they take part, and
    what they have been told."""

    def __init__(self, push: Any, pull: Any, *, shadow: object = None) -> None:
        self.push = push
        self.seen: list[str] = []
        self.recorded: list[tuple[bool, bool]] = []
        self.failures: list[Exception] = []
        self.aborted: list[str] = []
        self.stop_strings: dict[str, list[str]] = {}
        resources = BackgroundResources(ctx=None, output_socket=pull)
        client = self.client = SimpleNamespace(
            resources=resources,
            outputs_queue=None,
            decoder=MsgpackDecoder(EngineCoreOutputs),
            utility_results={},
            abort_requests_async=self._abort,
        )
        client._ensure_output_queue_task = lambda: None
        client._format_exception = lambda error: error
        client.get_output_async = lambda: AsyncMPClient.get_output_async(client)
        self.llm = SimpleNamespace(
            engine_core=client,
            output_processor=SimpleNamespace(
                process_outputs=self._process,
                update_scheduler_stats=lambda _: None,
                propagate_error=self.failures.append,
            ),
            renderer=SimpleNamespace(mm_processor_cache=shadow, stat_mm_cache=lambda: None),
            log_stats=True,
            logger_manager=SimpleNamespace(record=self._record),
            output_handler=None,
        )
        self.steps = Steps(self.llm)

    def handle(self) -> None:
        """Begin vLLM's handler."""
        AsyncLLM._run_output_handler(self.llm)

    async def say(self, names: list[str], **more: Any) -> None:
        outputs = [EngineCoreOutput(name, [1]) for name in names]
        frames = MsgpackEncoder().encode(EngineCoreOutputs(outputs=outputs, **more))
        await self.push.send_multipart(frames)

    def _process(self, outputs: Any, _: float, stats: Any, **__: Any) -> OutputProcessorOutput:
        assert stats is not None
        self.seen += [output.request_id for output in outputs]
        ended = self.stop_strings.pop(self.seen[-1], [])
        return OutputProcessorOutput(request_outputs=[], reqs_to_abort=ended)

    def _record(self, **told: Any) -> None:
        self.recorded.append(
            (told["iteration_stats"] is not None, told["scheduler_stats"] is not None)
        )

    async def _abort(self, request_ids: list[str]) -> None:
        await asyncio.sleep(0)
        self.aborted += request_ids


@asynccontextmanager
async def an_engine(**options: Any) -> AsyncIterator[Engine]:
    with zmq.asyncio.Context() as context:
        pull, push = context.socket(zmq.PULL), context.socket(zmq.PUSH)
        push.connect(f"tcp://127.0.0.1:{pull.bind_to_random_port('tcp://127.0.0.1')}")
        engine = Engine(push, pull, **options)
        try:
            yield engine
        finally:
            engine.steps.cancel()
            if engine.llm.output_handler is not None:
                engine.llm.output_handler.cancel()
            pull.close(0)
            push.close(0)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  # another thread brings it about
            await asyncio.sleep(0.005)


async def told(engine: Engine, sizes: list[int]) -> None:
    """Say steps of these sizes; all of it is seen, in order, and counted once a step."""
    names = [[f"{step}.{n}" for n in range(size)] for step, size in enumerate(sizes)]
    for each in names:
        await engine.say(each)
        if random.random() < 0.3:  # noqa: S311  # sometimes one by one, sometimes in a heap
            await asyncio.sleep(0.002)
    expected = [name for each in names for name in each]
    await until(lambda: len(engine.seen) >= len(expected))
    assert engine.seen == expected
    await until(lambda: len(engine.recorded) == sum(map(bool, sizes)))


async def test_small_steps_are_dealt_with_at_once() -> None:
    async with an_engine() as engine:
        engine.handle()
        await until(lambda: engine.client.outputs_queue.awaited)
        await told(engine, [1, 3, CHUNK, 0, 2] * 10)
        assert engine.client.outputs_queue.awaited  # Its handler was never woken up.
        assert all(stats for stats, _ in engine.recorded)


@pytest.mark.parametrize("seed", range(5))
async def test_nothing_overtakes_a_step_that_takes_several_turns(seed: int) -> None:
    async with an_engine() as engine:
        engine.handle()
        chance = random.Random(seed)  # noqa: S311  # sizes
        await told(engine, [chance.choice((1, 2, CHUNK + 1, 5 * CHUNK)) for _ in range(40)])


async def test_what_comes_before_the_handler_waits_for_it() -> None:
    async with an_engine() as engine:
        await engine.say(["a"])
        await engine.say(["b"])
        await until(lambda: engine.client.outputs_queue.qsize() == 2)
        assert engine.seen == []
        engine.handle()
        await until(lambda: engine.seen == ["a", "b"])


async def test_inputs_that_are_not_text_are_left_to_vllm() -> None:
    async with an_engine(shadow=SimpleNamespace(invalidate=print)) as engine:
        engine.handle()
        await until(lambda: engine.client.outputs_queue.awaited)
        await told(engine, [1, 2, 3])
        assert not engine.steps._texts_only


async def test_a_stop_string_ends_the_request_in_the_engine() -> None:
    async with an_engine() as engine:
        engine.handle()
        await until(lambda: engine.client.outputs_queue.awaited)
        engine.stop_strings["0.1"] = ["0.0", "0.1"]
        await told(engine, [2])
        await until(lambda: engine.aborted == ["0.0", "0.1"])


async def test_answers_of_the_engine_reach_who_asked() -> None:
    async with an_engine() as engine:
        asked = asyncio.get_running_loop().create_future()
        engine.client.utility_results[7] = asked
        await engine.say([], utility_output=UtilityOutput(call_id=7, result=UtilityResult("yes")))
        assert await asyncio.wait_for(asked, 20) == "yes"
        assert engine.recorded == []


async def test_the_end_of_the_engine_is_told_to_all_requests() -> None:
    async with an_engine() as engine:
        engine.handle()
        await until(lambda: engine.client.outputs_queue.awaited)
        await engine.push.send(EngineCoreProc.ENGINE_CORE_DEAD)
        await until(lambda: bool(engine.failures))
        assert isinstance(engine.failures[0], EngineDeadError)
        assert engine.client.resources.engine_dead
        assert engine.steps.done()


async def test_an_engine_that_says_nothing_any_more_has_ended_too() -> None:
    """Killed: vLLM's monitor closes the socket and cancels the reader."""
    async with an_engine() as engine:
        engine.handle()
        await until(lambda: engine.client.outputs_queue.awaited)
        engine.client.resources()
        await until(lambda: bool(engine.failures))
        assert isinstance(engine.failures[0], EngineDeadError)


class Panic(BaseException):
    """As the tokenizer's."""


@pytest.mark.parametrize("error", [ValueError("wrong"), Panic("odd")], ids=repr)
async def test_a_step_that_fails_is_told_to_all_requests(error: BaseException) -> None:
    async with an_engine() as engine:
        engine.handle()
        await until(lambda: engine.client.outputs_queue.awaited)

        def fail(*_: Any, **__: Any) -> None:
            raise error

        engine.llm.output_processor.process_outputs = fail
        await engine.say(["a"])
        await until(lambda: bool(engine.failures))
        assert str(error) in str(engine.failures[0])
        assert engine.steps.done()


async def test_an_abort_that_fails_ends_the_engine() -> None:
    async with an_engine() as engine:
        engine.handle()
        await until(lambda: engine.client.outputs_queue.awaited)

        async def fail(_: Any) -> None:
            raise ValueError("not sent")

        engine.client.abort_requests_async = fail
        engine.stop_strings["0.0"] = ["0.0"]
        await told(engine, [1])
        await until(lambda: bool(engine.failures))
        assert "not sent" in str(engine.failures[0])


async def test_after_the_end_nothing_is_read() -> None:
    async with an_engine() as engine:
        engine.handle()
        await told(engine, [1])
        engine.steps.cancel()
        engine.steps.cancel()
        await engine.say(["late"])
        for _ in range(20):
            await asyncio.sleep(0.005)
        assert engine.seen == ["0.0"]
