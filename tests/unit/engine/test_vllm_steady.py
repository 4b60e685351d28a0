"""Tokens that take the short loop are counted, and turned into text, as vLLM's own does."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import AsyncGenerator, Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

pytest.importorskip("vllm")

from transformers import PreTrainedTokenizerFast
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest, FinishReason
from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector
from vllm.v1.metrics.stats import IterationStats

from llmserve.engine.vllm.lean import ChatStream, Shape
from llmserve.engine.vllm.metered import Plain
from llmserve.engine.vllm.steady import Steady, can_be_steady
from llmserve.engine.vllm.tally import Tally
from llmserve.engine.vllm.tap import Piece, Tap
from llmserve.types import Meter

pytestmark = pytest.mark.anyio

PROMPT = [5, 6, 7]


def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes: many tokens are no character."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bare = Tokenizer(models.BPE({piece: n for n, piece in enumerate(alphabet)}, []))
    bare.decoder = decoders.ByteLevel()
    bare.add_special_tokens([AddedToken("<|end|>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=bare)


class Llm:
    """What a tally asks for."""

    taken_on: dict[str, list[Any]] = {}  # noqa: RUF012  # always empty


class Run:
    """One request in an output processor of vLLM's, with a tap."""

    def __init__(self, *, steady: bool, **sampling: Any) -> None:
        self.processor = OutputProcessor(tokenizer(), log_stats=True)
        self.steady = Steady(self.processor)
        self.meter = Meter()
        self.texts: list[str] = []
        self.steps: list[dict[str, Any]] = []
        params = SamplingParams(output_kind=RequestOutputKind.DELTA, max_tokens=99, **sampling)
        request = EngineCoreRequest("r", PROMPT, None, params, None, 0.0, None, None, None)
        request.external_req_id = "r"
        queue = RequestOutputCollector(params.output_kind, "r")
        self.processor.add_request(request, None, None, 0, queue)
        state = self.state = self.processor.request_states["r"]
        self.tap = Tap(Tally(Llm(), "r", self.meter))
        self.tap.connect(state)
        self.begun = False
        self.uses = steady and can_be_steady(state.detokenizer)

    def step(self, number: int, output: EngineCoreOutput) -> None:
        stats = IterationStats()
        self.processor.process_outputs([output], float(number), stats)
        if self.tap._held is not None:
            self.texts.append(self.tap._held.text)
            self.tap._held = None
        if not self.begun and self.uses:
            self.steady.taps["r"] = self.tap
        self.begun = True
        seen = vars(stats) | {"prompt_token_stats": vars(stats.prompt_token_stats)}
        self.steps.append({k: v for k, v in seen.items() if k not in VARYING})

    @property
    def outcome(self) -> tuple[Any, ...]:
        stats, meter = self.state.stats, self.meter
        return (
            self.texts,
            self.steps,
            (stats.num_generation_tokens, stats.first_token_ts, stats.last_token_ts),
            (meter.prompt_tokens, meter.completion_tokens, sum(meter.gap_counts)),
            self.state.detokenizer.token_ids,
        )


VARYING = ("iteration_timestamp", "time_to_first_tokens_iter", "finished_requests")


def outputs(seed: int) -> Iterator[EngineCoreOutput]:
    """An answer of bytes, one to three in a step, with a step now and then that says more."""
    chance = random.Random(seed)  # noqa: S311  # the same each time
    data = list("Grüße aus 東京 🙂🙂 <|end|> \n".encode()) * 2
    alphabet = {piece: n for n, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    pieces = pre_tokenizers.ByteLevel(add_prefix_space=False)
    text = "".join(piece for piece, _ in pieces.pre_tokenize_str(bytes(data).decode()))
    ids = [alphabet[piece] for piece in text]
    while ids:
        count = chance.randrange(1, 4)
        new, ids = ids[:count], ids[count:]
        output = EngineCoreOutput("r", new, finish_reason=None if ids else FinishReason.LENGTH)
        if not chance.randrange(6):
            output.events = []
        yield output


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "sampling", [{}, {"skip_special_tokens": False}, {"stop": ["京"]}], ids=str
)
def test_both_loops_say_and_count_the_same(seed: int, sampling: dict[str, Any]) -> None:
    short, own = Run(steady=True, **sampling), Run(steady=False, **sampling)
    for run in (short, own):
        for number, output in enumerate(outputs(seed)):
            if "r" in run.processor.request_states:
                run.step(number, output)
    assert short.outcome == own.outcome
    assert "Grüße aus 東" in "".join(short.texts)


def test_a_stop_string_needs_the_text_before_it() -> None:
    assert Run(steady=True).uses
    assert not Run(steady=True, stop=["x"]).uses


def test_only_tokens_of_streams_under_way_take_the_short_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, taken = Run(steady=True), []
    go_on = run.tap.go_on
    monkeypatch.setattr(run.tap, "go_on", lambda *given: (taken.append(given[0]), go_on(*given)))
    run.step(0, EngineCoreOutput("r", [65]))
    run.step(1, EngineCoreOutput("r", [66]))
    run.step(2, EngineCoreOutput("r", [67], events=[]))
    run.step(3, EngineCoreOutput("r", [68], num_nans_in_logits=1))
    run.step(4, EngineCoreOutput("r", []))
    run.step(5, EngineCoreOutput("somebody else", [69]))
    run.step(6, EngineCoreOutput("r", [70], finish_reason=FinishReason.LENGTH))
    assert taken == [[66]]
    assert run.meter.completion_tokens == 5


def test_what_goes_wrong_with_one_text_ends_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(steady=True)
    run.step(0, EngineCoreOutput("r", [65]))

    def broken(_: int) -> str:
        raise RuntimeError("a decoder in an odd state")

    monkeypatch.setattr(run.state.detokenizer, "decode_next", broken)
    run.step(1, EngineCoreOutput("r", [66]))
    assert isinstance(run.tap._error, RuntimeError)


MOST_CALLS = 26
"""Of functions, in Python or C, for a token of a chat stream that is under way, from the engine
core's outputs to the frame that is sent. It is 24, and the same on every machine. A pydantic
object that is made and written would be four more."""


def calls(work: Callable[[], Any]) -> int:
    """How many functions are called meanwhile."""
    count = 0

    def look(_: Any, event: str, __: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(look)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


async def chat_of(run: Run, frames: list[bytes]) -> asyncio.Task[list[Any]]:
    """The reader of a chat stream whose first token has come, and whose frames are sent."""

    async def pieces() -> AsyncGenerator[Piece, None]:
        while True:
            yield await run.tap.get()

    def send(data: bytes) -> bool:
        frames.append(data)
        return True

    shape = Shape("m", "assistant", None, False, False, skips_empty=True, push=send)
    client = cast(Plain, SimpleNamespace(tap=run.tap))
    events = ChatStream(shape, client).events(pieces(), "chatcmpl-0", 0)

    async def read() -> list[Any]:
        return [event async for event in events]

    reader = asyncio.ensure_future(read())
    await asyncio.sleep(0)
    run.processor.process_outputs([EngineCoreOutput("r", [65])], 0.0, IterationStats())
    run.steady.taps["r"] = run.tap
    for _ in range(5):
        await asyncio.sleep(0)
    return reader


async def test_a_token_is_few_calls_and_wakes_nobody() -> None:
    run, frames, steps = Run(steady=True), list[bytes](), 50
    reader = await chat_of(run, frames)
    assert len(frames) == 1
    stats = IterationStats()

    def step(number: int) -> None:
        run.processor.process_outputs([EngineCoreOutput("r", [66])], float(number), stats)

    step(1)
    made = calls(lambda: [step(number) for number in range(2, 2 + steps)])
    nothing = calls(lambda: [run.processor.process_outputs([], 0.0, stats) for _ in range(steps)])
    waiting = run.tap._waiting
    assert waiting is not None
    assert not waiting.done()
    assert len(frames) == 2 + steps
    assert (made - nothing) / steps <= MOST_CALLS
    reader.cancel()
