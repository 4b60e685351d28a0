"""The engine core's messages over a real socket, with vLLM's own handler behind ours."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

import zmq
import zmq.asyncio
from vllm.v1.engine import (
    EngineCoreOutput,
    EngineCoreOutputs,
    EngineCoreRequestType,
    UtilityOutput,
    core_client,
)
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.core import EngineCoreProc
from vllm.v1.engine.core_client import AsyncMPClient, BackgroundResources
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.engine.output_processor import OutputProcessorOutput
from vllm.v1.metrics.stats import PrefixCacheStats, SchedulerStats
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder, UtilityResult

from llmserve.engine.vllm import line as line_module
from llmserve.engine.vllm.line import Line, open_line
from llmserve.engine.vllm.steps import Steps

pytestmark = pytest.mark.anyio

CHUNK = 128


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """The server's event loop: others are more patient with a connection that has ended."""
    return "asyncio", {"use_uvloop": True}


class Engine:
    """Everything around ``Steps``: vLLM's client and handler as far as they take part, and
    what they have been told."""

    def __init__(self, push: Any, pull: Any, *, shadow: object = None) -> None:
        self.push = push
        self.push_usual: Any = None
        self.dealer: Any = None
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


Made = Callable[..., AbstractAsyncContextManager[Engine]]


@pytest.fixture(params=["vllm's socket", "line"])
def an_engine(request: pytest.FixtureRequest) -> Made:
    """An engine core that speaks over vLLM's socket, or over the line."""
    return {"vllm's socket": on_vllms_socket, "line": on_a_line}[request.param]


@asynccontextmanager
async def on_vllms_socket(**options: Any) -> AsyncIterator[Engine]:
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


@asynccontextmanager
async def on_a_line(**options: Any) -> AsyncIterator[Engine]:
    """What it says on vLLM's socket is ``push_usual``; ``dealer`` hears what it is told."""
    async with on_vllms_socket(**options) as engine:
        addresses = offered(line := Line())
        with zmq.asyncio.Context() as context:
            push, dealer = context.socket(zmq.PUSH), context.socket(zmq.DEALER)
            dealer.connect(addresses.inputs[-1])
            push.connect(addresses.outputs[-1])
            await dealer.send(b"here")
            await engine.steps.use(line)
            engine.push_usual, engine.push, engine.dealer = engine.push, push, dealer
            try:
                yield engine
            finally:
                engine.steps.cancel()
                dealer.close(0)
                push.close(0)


def offered(line: Line) -> SimpleNamespace:
    """The addresses that an engine core is started with."""
    addresses = SimpleNamespace(inputs=["ipc:///vllms"], outputs=["ipc:///vllms"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(core_client, "launch_core_engines", lambda *args: args[-1])
        with line.offered():
            assert core_client.launch_core_engines(None, None, True, addresses) is addresses
    return addresses


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


async def test_small_steps_are_dealt_with_at_once(an_engine: Made) -> None:
    async with an_engine() as engine:
        engine.handle()
        await until(lambda: engine.client.outputs_queue.awaited)
        await told(engine, [1, 3, CHUNK, 0, 2] * 10)
        assert engine.client.outputs_queue.awaited  # Its handler was never woken up.
        assert all(stats for stats, _ in engine.recorded)


@pytest.mark.parametrize("seed", range(5))
async def test_nothing_overtakes_a_step_that_takes_several_turns(
    an_engine: Made, seed: int
) -> None:
    async with an_engine() as engine:
        engine.handle()
        chance = random.Random(seed)  # noqa: S311  # sizes
        await told(engine, [chance.choice((1, 2, CHUNK + 1, 5 * CHUNK)) for _ in range(40)])


async def test_what_comes_before_the_handler_waits_for_it(an_engine: Made) -> None:
    async with an_engine() as engine:
        await engine.say(["a"])
        await engine.say(["b"])
        await until(lambda: engine.client.outputs_queue.qsize() == 2)
        assert engine.seen == []
        engine.handle()
        await until(lambda: engine.seen == ["a", "b"])


async def test_inputs_that_are_not_text_are_left_to_vllm(an_engine: Made) -> None:
    async with an_engine(shadow=SimpleNamespace(invalidate=print)) as engine:
        engine.handle()
        await until(lambda: engine.client.outputs_queue.awaited)
        await told(engine, [1, 2, 3])
        assert not engine.steps._texts_only


async def test_a_stop_string_ends_the_request_in_the_engine(an_engine: Made) -> None:
    async with an_engine() as engine:
        engine.handle()
        await until(lambda: engine.client.outputs_queue.awaited)
        engine.stop_strings["0.1"] = ["0.0", "0.1"]
        await told(engine, [2])
        await until(lambda: engine.aborted == ["0.0", "0.1"])


async def test_answers_of_the_engine_reach_who_asked(an_engine: Made) -> None:
    async with an_engine() as engine:
        asked = asyncio.get_running_loop().create_future()
        engine.client.utility_results[7] = asked
        await engine.say([], utility_output=UtilityOutput(call_id=7, result=UtilityResult("yes")))
        assert await asyncio.wait_for(asked, 20) == "yes"
        assert engine.recorded == []


async def test_the_end_of_the_engine_is_told_to_all_requests(an_engine: Made) -> None:
    async with an_engine() as engine:
        engine.handle()
        await until(lambda: engine.client.outputs_queue.awaited)
        await engine.push.send(EngineCoreProc.ENGINE_CORE_DEAD)
        await until(lambda: bool(engine.failures))
        assert isinstance(engine.failures[0], EngineDeadError)
        assert engine.client.resources.engine_dead
        assert engine.steps.done()


async def test_an_engine_that_says_nothing_any_more_has_ended_too(an_engine: Made) -> None:
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
async def test_a_step_that_fails_is_told_to_all_requests(
    an_engine: Made, error: BaseException
) -> None:
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


async def test_an_abort_that_fails_ends_the_engine(an_engine: Made) -> None:
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


async def test_after_the_end_nothing_is_read(an_engine: Made) -> None:
    async with an_engine() as engine:
        engine.handle()
        await told(engine, [1])
        engine.steps.cancel()
        engine.steps.cancel()
        await engine.say(["late"])
        for _ in range(20):
            await asyncio.sleep(0.005)
        assert engine.seen == ["0.0"]


async def test_what_is_asked_goes_over_the_line() -> None:
    async with on_a_line() as engine:
        request = (b"\0\0", b"\1", b"a request", memoryview(b"a tensor" * 100_000))
        await engine.client.input_socket.send_multipart(request, copy=False)
        assert await engine.dealer.recv_multipart() == list(map(bytes, request[1:]))
        assert engine.client.client_index == 1


async def test_vllms_own_socket_is_still_heard() -> None:
    async with on_a_line() as engine:
        engine.handle()
        await told(engine, [2])
        engine.push = engine.push_usual
        engine.seen.clear()
        engine.recorded.clear()
        await told(engine, [1, 2])


async def test_an_engine_that_is_killed_is_noticed_by_its_line() -> None:
    async with on_a_line() as engine:
        engine.handle()
        await told(engine, [1])
        engine.push.close(0)
        await until(lambda: bool(engine.failures))
        assert isinstance(engine.failures[0], EngineDeadError)


async def test_what_an_engine_said_before_its_end_counts() -> None:
    async with on_a_line() as engine:
        engine.handle()
        await told(engine, [1])
        await engine.push_usual.send(EngineCoreProc.ENGINE_CORE_DEAD)
        for number in range(30):
            await engine.say([f"late {number}"])
        engine.dealer.close(0)
        engine.push.close(5_000)
        await until(lambda: bool(engine.failures))
        assert engine.seen == ["0.0", *(f"late {number}" for number in range(30))]


async def test_to_an_engine_that_has_gone_nothing_is_sent() -> None:
    async with on_a_line() as engine:
        engine.handle()
        engine.dealer.close(0)
        await until(lambda: engine.steps._peers[0].closing)
        asked = engine.client.input_socket.send_multipart
        await asked((b"\0\0", EngineCoreRequestType.ABORT.value, b"ids"), copy=False)
        with pytest.raises(EngineDeadError):
            await asked((b"\0\0", EngineCoreRequestType.ADD.value, b"a request"), copy=False)


async def test_how_things_stood_does_not_overtake_how_they_stand() -> None:
    async with on_a_line() as engine:
        engine.handle()
        await until(lambda: engine.client.outputs_queue.awaited)
        shown: list[Any] = []
        engine.llm.logger_manager.record = lambda **it: shown.append(it["scheduler_stats"])
        now = SchedulerStats(num_running_reqs=0, kv_cache_usage=0.1)
        await engine.say(["a"], scheduler_stats=now, timestamp=2.0)
        await until(lambda: len(shown) == 1)
        engine.push = engine.push_usual
        cached = PrefixCacheStats(queries=7)
        before = SchedulerStats(num_running_reqs=5, kv_cache_usage=0.9, prefix_cache_stats=cached)
        await engine.say([], scheduler_stats=before, timestamp=1.0)
        await until(lambda: len(shown) == 2)
        assert [stats.num_running_reqs for stats in shown] == [0, 0]
        assert [stats.kv_cache_usage for stats in shown] == [0.1, 0.1]
        assert [stats.prefix_cache_stats.queries for stats in shown] == [0, 7]


async def test_an_engine_that_does_not_come_to_the_line_is_heard_as_before(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(line_module, "_CONNECT_SECONDS", 0.05)
    async with on_vllms_socket() as engine:
        engine.handle()
        line = Line()
        context = zmq.Context()
        half = context.socket(zmq.DEALER)
        half.connect(offered(line).inputs[-1])
        await engine.steps.use(line)
        half.close(0)
        context.term()
        assert "did not take the short line" in caplog.text
        assert not hasattr(engine.client, "input_socket")
        await told(engine, [1, 2])
        assert engine.failures == []


def test_only_an_engine_that_is_one_process_here_gets_a_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def config(**parallel: Any) -> Any:
        usual = {"data_parallel_size": 1, "nnodes": 1}
        more = {"enable_fault_tolerance": False, "enable_elastic_ep": False}
        return SimpleNamespace(parallel_config=SimpleNamespace(**usual | more | parallel))

    line = open_line(config())
    assert line is not None
    line.close()
    line.close()
    for several in ("data_parallel_size", "nnodes"):
        assert open_line(config(**{several: 2})) is None
    for other in ("enable_fault_tolerance", "enable_elastic_ep"):
        assert open_line(config(**{other: True})) is None
    (tmp_path / ("long" * 40)).mkdir()
    elsewhere = SimpleNamespace(VLLM_RPC_BASE_PATH=str(tmp_path / ("long" * 40)))
    monkeypatch.setattr(line_module, "envs", elsewhere)
    assert open_line(config()) is None


def test_an_engine_that_may_be_elsewhere_is_not_told_of_the_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(core_client, "launch_core_engines", lambda *args: args[-1])
    addresses = SimpleNamespace(inputs=["tcp://10.0.0.1:1"], outputs=["tcp://10.0.0.1:2"])
    line = Line()
    with line.offered():
        core_client.launch_core_engines(None, None, True, addresses)
    line.close()
    assert (len(addresses.inputs), len(addresses.outputs), line.told) == (1, 1, False)


def test_a_start_that_fails_leaves_no_socket() -> None:
    line = Line()
    folder = Path(line._folder.name)
    with pytest.raises(RuntimeError), line.offered():
        raise RuntimeError("no memory")
    assert not folder.exists()
