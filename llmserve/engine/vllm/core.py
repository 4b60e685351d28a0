"""The running vLLM: one ``AsyncLLM``, the serving classes around it, and the meters.

Every generation goes through ``Metered``, ours and that of vLLM's own serving classes,
so tokens are counted in one place whatever the protocol, and also for requests that are
cut off.
"""

from __future__ import annotations

import copy
import itertools
import time
from argparse import Namespace
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.datastructures import State
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.lora.request import LoRARequest
from vllm.outputs import PoolingRequestOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.usage.usage_lib import UsageContext
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.output_processor import RequestState
from vllm.v1.executor import Executor
from vllm.v1.metrics.loggers import StatLoggerBase
from vllm.v1.metrics.stats import SchedulerStats

from llmserve.engine.vllm.errors import GrammarRefused
from llmserve.engine.vllm.tools import bound_spaces
from llmserve.errors import Aborted, InternalError
from llmserve.types import Load, Meter, ModelInfo

Serving = TypeVar("Serving")


class LoadProbe(StatLoggerBase):  # type: ignore[misc]  # vLLM is untyped here
    """Keeps the newest scheduler statistics of the engine core."""

    def __init__(self) -> None:
        self.latest = SchedulerStats()

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: Any,  # noqa: ARG002
        mm_cache_stats: Any = None,  # noqa: ARG002
        engine_idx: int = 0,  # noqa: ARG002
    ) -> None:
        if scheduler_stats is not None:
            self.latest = scheduler_stats

    def log_engine_initialized(self) -> None:
        """Nothing to say."""


class ObservedLLM(AsyncLLM):  # type: ignore[misc]  # vLLM is untyped here
    """``AsyncLLM`` that shows the states of the requests it has taken on.

    A request that wants only its final output never reports its tokens when it is cut
    off; its state knows them.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.taken_on: dict[str, list[RequestState]] = {}
        self._numbers = itertools.count()
        super().__init__(*args, **kwargs)

    def unique(self, request_id: str) -> str:
        """An id that no other request has: clients may choose theirs, and repeat it."""
        return f"{request_id}-{next(self._numbers)}"

    async def add_request(self, request_id: str, *args: Any, **kwargs: Any) -> Any:
        processor = self.output_processor
        try:
            queue = await super().add_request(request_id, *args, **kwargs)
        except Exception:
            # vLLM registers a request before it sends it, and forgets to undo that.
            processor.abort_requests([request_id], internal=False)
            raise
        self.taken_on[request_id] = [
            processor.request_states[internal]
            for internal in processor.external_req_ids.get(request_id, ())
            if internal in processor.request_states
        ]
        return queue


class Metered:
    """An engine client for one request: counts its tokens and refuses to pass an abort
    off as an answer. Everything else is the wrapped client's."""

    def __init__(self, llm: ObservedLLM, meter: Meter) -> None:
        self._llm = llm
        self._meter = meter
        self.failure: Exception | None = None
        """What ended the generation; vLLM's serving classes turn it into plain text."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._llm, name)

    async def generate(
        self, prompt: Any, sampling_params: SamplingParams, request_id: str, **options: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        """As ``AsyncLLM.generate``. Raises ``Aborted`` and ``InternalError`` where vLLM
        yields an output with the finish reason ``abort`` or ``error``."""
        _bound_spaces(sampling_params)
        request_id = self._llm.unique(request_id)
        deltas = sampling_params.output_kind is RequestOutputKind.DELTA
        started, first, counted = time.monotonic(), True, False
        try:
            stream = self._llm.generate(prompt, sampling_params, request_id, **options)
            async with aclosing(stream) as outputs:
                async for output in outputs:
                    if first:
                        self._count_prompt(output)
                        first = False
                    tokens = sum(len(choice.token_ids) for choice in output.outputs)
                    if deltas:
                        self._count_delta(tokens, output)
                    elif output.finished:
                        self._count_whole(tokens, output, started)
                        counted = True
                    _refuse_abort(output, sampling_params)
                    yield output
        except Exception as error:
            self.failure = error
            raise
        finally:
            self._count_cut_off(request_id, prompt=first, tokens=not deltas and not counted)

    async def encode(
        self, prompt: Any, pooling_params: Any, request_id: str, **options: Any
    ) -> AsyncGenerator[PoolingRequestOutput, None]:
        """As ``AsyncLLM.encode``."""
        request_id = self._llm.unique(request_id)
        stream = self._llm.encode(prompt, pooling_params, request_id, **options)
        try:
            async with aclosing(stream) as outputs:
                async for output in outputs:
                    if output.finished:
                        self._count_prompt(output)
                    yield output
        finally:
            self._llm.taken_on.pop(request_id, None)

    def _count_prompt(self, output: RequestOutput | PoolingRequestOutput) -> None:
        self._meter.prompt_tokens += len(output.prompt_token_ids or ())
        self._meter.cached_tokens += output.num_cached_tokens or 0

    def _count_delta(self, tokens: int, output: RequestOutput) -> None:
        if self._meter.first_token_at is None:
            self._meter.queue_seconds = _queue_seconds(output)
        self._meter.add_tokens(tokens, time.monotonic())

    def _count_whole(self, tokens: int, output: RequestOutput, started: float) -> None:
        """All tokens at once, at the end: the engine's own clock knows when they came."""
        meter, stats = self._meter, output.metrics
        meter.completion_tokens += tokens
        meter.last_token_at = time.monotonic()
        if stats is None or not tokens:
            return
        meter.queue_seconds = _queue_seconds(output)
        if meter.first_token_at is None:
            meter.first_token_at = min(meter.last_token_at, started + stats.first_token_latency)
        if stats.num_generation_tokens > 1:
            gaps = stats.num_generation_tokens - 1
            meter.add_gaps(max(0.0, stats.last_token_ts - stats.first_token_ts) / gaps, gaps)

    def _count_cut_off(self, request_id: str, *, prompt: bool, tokens: bool) -> None:
        """What a request used that ended before its outputs said so."""
        states = self._llm.taken_on.pop(request_id, [])
        if prompt and states:
            self._meter.prompt_tokens += states[0].prompt_len
        if tokens:
            self._meter.completion_tokens += sum(
                state.stats.num_generation_tokens for state in states if state.stats
            )


class Core:
    """One started engine. ``state`` holds vLLM's serving classes around it."""

    def __init__(self, llm: ObservedLLM, state: State, info: ModelInfo, probe: LoadProbe) -> None:
        self.llm = llm
        self.state = state
        self.info = info
        self._probe = probe

    def metered(self, meter: Meter) -> Metered:
        """The engine client that counts on ``meter``."""
        return Metered(self.llm, meter)

    def bound(self, name: str, meter: Meter) -> Any:
        """The serving class called ``name``, bound to a metered client; ``None`` when
        the model does not have it. A shallow copy: these objects hold configuration."""
        serving = getattr(self.state, name, None)
        if serving is None:
            return None
        serving = copy.copy(serving)
        serving.engine_client = self.metered(meter)
        return serving

    def adapter(self, name: str | None) -> LoRARequest | None:
        """The loaded LoRA adapter of that name."""
        return self.state.openai_serving_models.lora_requests[name] if name else None

    def load(self) -> Load:
        """Running and waiting are the front end's own count, so they are never stale."""
        unfinished = self.llm.get_num_unfinished_requests()
        latest = self._probe.latest
        waiting = min(unfinished, latest.num_waiting_reqs)
        usage = latest.kv_cache_usage if unfinished else 0.0
        return Load(running=unfinished - waiting, waiting=waiting, kv_cache_usage=usage)


def create_llm(namespace: Namespace) -> tuple[ObservedLLM, LoadProbe]:
    """Start the engine core and load the model; blocks for as long as that takes."""
    engine_args = AsyncEngineArgs.from_cli_args(namespace)
    config = engine_args.create_engine_config(UsageContext.OPENAI_API_SERVER)
    probe = LoadProbe()
    llm = ObservedLLM(
        vllm_config=config,
        executor_class=Executor.get_class(config),
        log_stats=not engine_args.disable_log_stats,
        log_requests=False,
        stat_loggers=[lambda *_: probe],
    )
    return llm, probe


async def build_core(llm: ObservedLLM, probe: LoadProbe, namespace: Namespace) -> Core:
    """Put vLLM's serving classes around a started engine."""
    tasks = await llm.get_supported_tasks()
    state = State()
    await init_app_state(llm, state, namespace, tasks)
    info = ModelInfo(
        name=namespace.served_model_name[0],
        source=namespace.model,
        max_model_len=llm.model_config.max_model_len,
        tasks=frozenset(tasks),
        adapters=tuple(state.openai_serving_models.lora_requests),
    )
    return Core(llm, state, info, probe)


def _bound_spaces(params: SamplingParams) -> None:
    constraint = params.structured_outputs
    if constraint is not None and constraint.structural_tag:
        constraint.structural_tag = bound_spaces(constraint.structural_tag)


def _queue_seconds(output: RequestOutput) -> float | None:
    stats = output.metrics
    if stats is None or stats.scheduled_ts <= 0:
        return None
    return max(0.0, float(stats.scheduled_ts - stats.queued_ts))


def _refuse_abort(output: RequestOutput, params: SamplingParams) -> None:
    """Raise for an output that vLLM calls finished although it failed."""
    for choice in output.outputs:
        if choice.finish_reason == "abort":
            raise Aborted()
        if choice.finish_reason == "error":
            if params.structured_outputs is not None:
                # So the engine core reports a grammar that does not compile, or that
                # has no token left to allow.
                raise GrammarRefused()
            raise InternalError()
