"""What the native face pushes is what it would have yielded."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

import pytest
from driving import ask, run
from ways import SPLIT

from llmserve.engine.protocol import Engine
from llmserve.types import Chunk, Constraint, Meter

pytestmark = pytest.mark.anyio

SAMPLINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0, "max_tokens": 40, "ignore_eos": True},
    "sampled": {"temperature": 1.3, "seed": 7, "max_tokens": 40, "ignore_eos": True},
    "stop strings": {"temperature": 0, "max_tokens": 40, "stop": ("\0", "never said")},
    "split characters": {"temperature": 0, "max_tokens": 60, "constraint": Constraint(regex=SPLIT)},
}


def said(chunks: Sequence[Chunk], meter: Meter) -> tuple[Any, ...]:
    """An answer, however it was cut into chunks."""
    *before, last = chunks
    assert {(c.index, c.finish_reason, c.stop_reason, c.logprobs) for c in before} <= {
        (0, None, None, None)
    }
    return (
        "".join(chunk.text for chunk in chunks),
        sum(len(chunk.token_ids) for chunk in chunks),
        (last.index, last.finish_reason, last.stop_reason, last.logprobs),
        (meter.prompt_tokens, meter.completion_tokens),
    )


@pytest.mark.parametrize("refused", [0, 3], ids=["all", "not every third"])
@pytest.mark.parametrize("name", SAMPLINGS)
async def test_what_is_pushed_would_have_been_yielded(
    vllm_engine: Engine, name: str, refused: int
) -> None:
    sampling = SAMPLINGS[name]
    plain = await run(vllm_engine, ask(**sampling))
    seen: list[Chunk] = []
    pushed: list[Chunk] = []
    asked = 0

    def push(text: str, tokens: int) -> bool:
        nonlocal asked
        asked += 1
        if refused and asked % refused == 0:
            return False
        pushed.append(Chunk(0, text, (0,) * tokens))
        seen.append(pushed[-1])
        return True

    meter = Meter()
    async with aclosing(vllm_engine.generate(ask(**sampling), meter, push)) as chunks:
        async for chunk in chunks:
            seen.append(chunk)
    assert said(seen, meter) == said(plain.chunks, plain.meter)
    assert pushed, "the short way was not used"
    assert len(pushed) < asked or not refused
    assert seen[0] is not pushed[0]
    assert seen[-1] is not pushed[-1]
    if name == "split characters":
        assert plain.text() == SPLIT
        assert len(plain.ids()) > len(SPLIT) + 1, "no character was split"
