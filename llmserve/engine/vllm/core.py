"""The running vLLM: one ``AsyncLLM``, and the serving classes around it."""

from __future__ import annotations

import copy
import itertools
from argparse import Namespace
from contextlib import nullcontext
from typing import Any, TypeVar

from starlette.datastructures import State
from vllm import envs
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.lora.request import LoRARequest
from vllm.usage.usage_lib import UsageContext
from vllm.utils.mistral import is_mistral_tokenizer
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.output_processor import RequestState
from vllm.v1.executor import Executor
from vllm.v1.metrics.loggers import StatLoggerBase
from vllm.v1.metrics.stats import SchedulerStats

from llmserve.engine.vllm.direct import Direct
from llmserve.engine.vllm.dtypes import FittingArgs
from llmserve.engine.vllm.inline import InlineRenderer, make_inline
from llmserve.engine.vllm.line import Line, open_line
from llmserve.engine.vllm.metered import Metered, Plain
from llmserve.engine.vllm.priming import bound_priming
from llmserve.engine.vllm.prompts import make_prompts
from llmserve.engine.vllm.steady import Steady
from llmserve.engine.vllm.step_metrics import StepMetrics
from llmserve.engine.vllm.steps import read_steps
from llmserve.engine.vllm.trial import Trials
from llmserve.types import Load, Meter, ModelInfo, Operation

Serving = TypeVar("Serving")


class LoadProbe(StatLoggerBase):  # type: ignore[misc]  # vLLM is untyped here
    """Keeps the newest scheduler statistics of the engine core, and counts its steps:
    there is a record for each, also for those that only read prompts."""

    def __init__(self) -> None:
        self.latest = SchedulerStats()
        self.steps = 0

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: Any,  # noqa: ARG002
        mm_cache_stats: Any = None,  # noqa: ARG002
        engine_idx: int = 0,  # noqa: ARG002
    ) -> None:
        self.steps += 1
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
        self.trials: Trials | None = None
        self.line: Line | None = None
        self._numbers = itertools.count()
        super().__init__(*args, **kwargs)
        self.steady = Steady(self.output_processor)

    def unique(self, request_id: str) -> str:
        """An id that no other request has: clients may choose theirs, and repeat it."""
        return f"{request_id}-{next(self._numbers)}"

    def shutdown(self, *args: Any, **kwargs: Any) -> None:
        if self.line is not None:
            self.line.close()
        super().shutdown(*args, **kwargs)

    async def add_request(self, request_id: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return await super().add_request(request_id, *args, **kwargs)
        except BaseException:
            # vLLM registers a request before it sends it, and forgets to undo that when it
            # fails or is cancelled on the way.
            await self.abort(request_id)
            raise
        finally:
            self.taken_on[request_id] = states = self._states(request_id)
            for state in states:
                bound_priming(state)

    def _states(self, request_id: str) -> list[RequestState]:
        processor = self.output_processor
        return [
            processor.request_states[internal]
            for internal in processor.external_req_ids.get(request_id, ())
            if internal in processor.request_states
        ]


class Core:
    """One started engine. ``state`` holds vLLM's serving classes around it."""

    def __init__(self, llm: ObservedLLM, state: State, info: ModelInfo, probe: LoadProbe) -> None:
        self.llm = llm
        self.state = state
        self.info = info
        # Read once: vLLM reads the file anew at each call, and asks the tokenizer for its
        # last token at each request.
        self.default_sampling = llm.model_config.get_diff_sampling_param()
        end = llm.renderer.get_eos_token_id()
        llm.renderer.get_eos_token_id = lambda: end
        online = state.online_renderer
        self._inline = make_inline(llm.renderer)
        self._online_inline = copy.copy(online)
        self._online_inline.renderer = self._inline
        self.prompts = None if self._inline is None else make_prompts(self._inline, online)
        self.direct = None
        if self.prompts is not None:
            self.direct = Direct(self.prompts, _serving_of(state), info.chars_per_token)
        self._probe = probe

    def close(self) -> None:
        """End what belongs to the engine and is not vLLM's."""
        if self.llm.trials is not None:
            self.llm.trials.close()
        if self.prompts is not None:
            self.prompts.close()

    @property
    def inline(self) -> InlineRenderer | None:
        """The renderer for short prompts; ``None`` where there is none, and while another
        thread reads the tokenizer that it would change."""
        if self.prompts is not None and self.prompts.busy:
            return None
        return self._inline

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

    def plain(self, meter: Meter) -> Plain:
        """The engine client for a plan of ``direct``."""
        return Plain(self.llm, meter)

    def render_inline(self, serving: Any) -> None:
        """Have this copy of a serving class render its prompt at once."""
        if self.inline is not None:
            serving.online_renderer = self._online_inline

    def adapter(self, name: str | None) -> LoRARequest | None:
        """The loaded LoRA adapter of that name."""
        return self.state.openai_serving_models.lora_requests[name] if name else None

    def steps(self) -> int:
        return self._probe.steps

    def load(self) -> Load:
        """Running and waiting are the front end's own count, so they are never stale."""
        unfinished = self.llm.get_num_unfinished_requests()
        latest = self._probe.latest
        waiting = min(unfinished, latest.num_waiting_reqs)
        usage = latest.kv_cache_usage if unfinished else 0.0
        return Load(running=unfinished - waiting, waiting=waiting, kv_cache_usage=usage)


def _serving_of(state: State) -> dict[Operation, Any]:
    names = {
        Operation.CHAT: "openai_serving_chat",
        Operation.COMPLETION: "openai_serving_completion",
    }
    return {operation: getattr(state, name, None) for operation, name in names.items()}


def create_llm(namespace: Namespace) -> tuple[ObservedLLM, LoadProbe]:
    """Start the engine core and load the model; blocks for as long as that takes."""
    engine_args = FittingArgs.from_cli_args(namespace)
    config = engine_args.create_engine_config(UsageContext.OPENAI_API_SERVER)
    probe = LoadProbe()
    line = open_line(config)
    with line.offered() if line else nullcontext():
        llm = ObservedLLM(
            vllm_config=config,
            executor_class=Executor.get_class(config),
            log_stats=not engine_args.disable_log_stats,
            log_requests=False,
            stat_loggers=[lambda *_: probe, StepMetrics],
        )
    llm.line = line
    return llm, probe


async def build_core(
    llm: ObservedLLM, probe: LoadProbe, namespace: Namespace, *, grammar_seconds: float
) -> Core:
    """Put vLLM's serving classes around a started engine. ``grammar_seconds``: the time in
    which a grammar must compile, 0 for no trial."""
    await read_steps(llm)
    tasks = await llm.get_supported_tasks()
    state = State()
    await init_app_state(llm, state, namespace, tasks)
    info = ModelInfo(
        name=namespace.served_model_name[0],
        source=namespace.model,
        max_model_len=llm.model_config.max_model_len,
        tasks=frozenset(tasks),
        adapters=tuple(state.openai_serving_models.lora_requests),
        max_running=llm.vllm_config.scheduler_config.max_num_seqs,
        chars_per_token=llm.renderer.get_tokenizer().max_chars_per_token,
    )
    llm.trials = _trials(llm, grammar_seconds)
    # vLLM reads the environment at each use, for every token as well, unless told to keep it.
    envs.enable_envs_cache()
    return Core(llm, state, info, probe)


def _trials(llm: ObservedLLM, seconds: float) -> Trials | None:
    """Only for the compiler that is the default here; the others have their own limits."""
    outputs, tokenizer = llm.vllm_config.structured_outputs_config, llm.renderer.get_tokenizer()
    if outputs.backend != "xgrammar" or is_mistral_tokenizer(tokenizer) or seconds <= 0:
        return None

    def serialized() -> str:
        import xgrammar

        size = llm.model_config.get_vocab_size()
        found = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=size)
        return str(found.serialize_json())

    return Trials(serialized, compact=outputs.disable_any_whitespace, seconds=seconds)
