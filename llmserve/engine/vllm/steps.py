"""What the engine core says after a step, from its socket to the streams.

vLLM reads the socket in one task, which wakes another one over a queue, which hands the
outputs to the requests: three turns of the event loop and two wake-ups for each step, before
anything is written to a client. Here the event loop says that the socket can be read, and
the step is dealt with at once. What vLLM deals with in several turns (very many outputs,
inputs that are not text) and whatever comes while it does so still goes into its queue, so
that nothing overtakes. Over a line of our own (``line.py``) not even zmq's thread takes part.

The slow twins are ``AsyncMPClient._ensure_output_queue_task`` and
``AsyncLLM._run_output_handler`` in vLLM. Where the engine's client is of another kind than
the usual one, they do it all.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import zmq
from vllm import envs
from vllm.v1.engine.core import EngineCoreProc
from vllm.v1.engine.core_client import AsyncMPClient, _process_utility_output
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.metrics.stats import IterationStats

from llmserve.engine.vllm.line import SECOND, Input, Line
from llmserve.engine.vllm.zmtp import Message, Peer, ProtocolError

if TYPE_CHECKING:
    from llmserve.engine.vllm.core import ObservedLLM

log = logging.getLogger(__name__)

_DEAD = EngineCoreProc.ENGINE_CORE_DEAD
_AT_ONCE = 4
"""Messages that are dealt with before others get their turn."""


_STANDING = (
    *("num_running_reqs", "num_waiting_reqs", "num_skipped_waiting_reqs"),
    *("num_kv_fetch_reqs_by_stage", "kv_cache_usage"),
    *("running_lora_adapters", "waiting_lora_adapters"),
)
"""What scheduler statistics say of this moment; all else is what was added in a step."""


class Steps:
    """Reads the engine core's messages on the running event loop, until it is closed. For
    vLLM it is the task in the place of its own reader, which it begins where there is none,
    and cancels when it closes the socket."""

    def __init__(self, llm: ObservedLLM) -> None:
        client = llm.engine_core
        self._llm = llm
        self._client = client
        self._resources = client.resources
        self._queue = client.outputs_queue = _Queue()
        self._most = envs.VLLM_V1_OUTPUT_PROC_CHUNK_SIZE
        self._texts_only = llm.renderer.mm_processor_cache is None
        self._aborts: set[asyncio.Task[None]] = set()
        self._backlog: deque[Message] = deque()
        self._peers: tuple[Peer, ...] = ()
        self._stats: Any = None
        self._stats_at = 0.0
        self._loop = asyncio.get_running_loop()
        self._socket: Any = zmq.Socket.shadow(client.resources.output_socket)
        self._fd: int | None = self._socket.FD
        client.resources.output_queue_task = self
        self._loop.add_reader(self._fd, self._read)
        self._loop.call_soon(self._read)  # The socket tells of changes only.

    def cancel(self) -> None:
        """Read no more, and let vLLM's handler tell all requests; idempotent."""
        self._end(EngineDeadError())

    def done(self) -> bool:
        """Whether it has been cancelled, or has failed."""
        return self._fd is None

    async def use(self, line: Line) -> None:
        """From now on talk with the engine core over ``line``, if it comes."""
        try:
            self._peers = await line.connect(self._received, self._lost)
        except (OSError, ProtocolError) as error:  # Among them TimeoutError.
            log.warning("the engine core did not take the short line: %r", error)
            return
        self._client.input_socket = Input(self._peers[0])
        self._client.client_index = SECOND

    def _received(self, messages: list[Message]) -> None:
        self._backlog += messages
        if len(self._backlog) == len(messages):
            self._work()

    def _work(self) -> None:
        """Deal with what came over the line."""
        self._deal(self._backlog.popleft() for _ in range(min(_AT_ONCE, len(self._backlog))))
        if self._backlog and not self.done():
            self._loop.call_soon(self._work)

    def _lost(self, error: Exception | None) -> None:
        if self._peers:
            log.debug("the line to the engine core has ended: %r", error)
            # What it said before that counts.
            self._deal(self._backlog)
            self._backlog.clear()
            self._end(EngineDeadError())

    def _read(self) -> None:
        """Deal with what came by vLLM's own socket."""
        if not self.done() and self._deal(self._waiting()) == _AT_ONCE:
            self._loop.call_soon(self._read)

    def _waiting(self) -> Iterable[Any]:
        for _ in range(_AT_ONCE):
            if not self._socket.get(zmq.EVENTS) & zmq.POLLIN:
                return
            frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            # Over the line the end comes after the last outputs.
            if not (self._peers and _tells_the_end(frames)):
                yield frames

    def _deal(self, messages: Iterable[Any]) -> int:
        """How many were dealt with."""
        count = 0
        try:
            for frames in messages:
                if self.done():
                    break
                self._take(frames)
                count += 1
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # The tokenizer's panics are no Exceptions.
            self._end(error if isinstance(error, Exception) else RuntimeError(repr(error)))
        return count

    def _end(self, error: Exception) -> None:
        """Stop reading because of this. As in vLLM the engine is over then."""
        if self._fd is not None:
            self._loop.remove_reader(self._fd)
            self._fd = None
            self._queue.put_nowait(error)
            for peer in self._peers:
                peer.close()

    def _take(self, frames: list[Any]) -> None:
        if _tells_the_end(frames):
            self._resources.engine_dead = True
            raise EngineDeadError()
        outputs = self._client.decoder.decode(frames)
        if outputs.utility_output:
            _process_utility_output(outputs.utility_output, self._client.utility_results)
        elif outputs.outputs or outputs.scheduler_stats:
            if self._queue.awaited and self._texts_only and len(outputs.outputs) <= self._most:
                self._step(outputs)
            else:
                self._queue.put_nowait(outputs)

    def _step(self, outputs: Any) -> None:
        """As a turn of vLLM's output handler."""
        llm = self._llm
        stats = IterationStats() if llm.log_stats and outputs.outputs else None
        if outputs.outputs:
            processed = llm.output_processor.process_outputs(
                outputs.outputs, outputs.timestamp, stats, weight_version=outputs.weight_version
            )
            if processed.reqs_to_abort:
                self._abort(processed.reqs_to_abort)
        if outputs.scheduler_stats is not None:
            self._bring_up_to_date(outputs.scheduler_stats, outputs.timestamp)
        llm.output_processor.update_scheduler_stats(outputs.scheduler_stats)
        if llm.logger_manager:
            llm.logger_manager.record(
                engine_idx=outputs.engine_index,
                scheduler_stats=outputs.scheduler_stats,
                iteration_stats=stats,
                mm_cache_stats=llm.renderer.stat_mm_cache(),
            )

    def _bring_up_to_date(self, stats: Any, timestamp: float) -> None:
        """A step without outputs is told on vLLM's socket, and may be overtaken by the next:
        how things stood is then older than what is known."""
        if timestamp >= self._stats_at:
            self._stats, self._stats_at = stats, timestamp
            return
        for name in _STANDING:
            setattr(stats, name, getattr(self._stats, name))

    def _abort(self, request_ids: list[str]) -> None:
        """Tell the engine core of requests that a stop string has ended."""
        task = self._loop.create_task(self._client.abort_requests_async(request_ids))
        self._aborts.add(task)
        task.add_done_callback(self._aborted)

    def _aborted(self, task: asyncio.Task[None]) -> None:
        self._aborts.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Exception):
            self._end(error)


async def read_steps(llm: ObservedLLM) -> None:
    """Before anything is asked of the engine. vLLM's own reader stays with several engine
    cores, and with ones that report more than outputs."""
    client = llm.engine_core
    usual = type(client) is AsyncMPClient and client.resources.output_queue_task is None
    if usual and not client.vllm_config.parallel_config.enable_fault_tolerance:
        steps = Steps(llm)
        if llm.line is not None and llm.line.told:
            await steps.use(llm.line)


def _tells_the_end(frames: Any) -> bool:
    return len(frames) == 1 and len(frames[0]) == len(_DEAD) and bytes(frames[0]) == _DEAD


class _Queue(asyncio.Queue[Any]):
    """vLLM's queue of what its handler is to do. ``awaited``: the handler has nothing to do,
    and waits."""

    awaited = False

    async def get(self) -> Any:
        self.awaited = self.empty()
        try:
            return await super().get()
        finally:
            self.awaited = False

    def put_nowait(self, item: Any) -> None:
        self.awaited = False
        super().put_nowait(item)
