"""Grammars on trial: what is good is remembered, what takes too long is refused, and the
process that tries them is replaced and never outlives the server."""

from __future__ import annotations

import asyncio
import json
import signal
import string
from types import SimpleNamespace

import pytest

from llmserve.engine.vllm.trial import Trials, to_be_tried
from llmserve.errors import Overloaded

pytest.importorskip("xgrammar")
pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

GOOD = json.dumps({"type": "object", "properties": {"a": {"type": "string"}}})


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def tokenizer() -> str:
    import xgrammar

    vocabulary = [*string.printable, "aa", "aaaa", "</s>"]
    return str(xgrammar.TokenizerInfo(vocabulary).serialize_json())


async def test_a_good_grammar_is_tried_once() -> None:
    trials = Trials(tokenizer, compact=True, seconds=60)
    try:
        assert await trials.wrong("json", GOOD) is None
        assert await trials.wrong("regex", "[a-z]+") is None
        # What the compiler refuses is for vLLM to say.
        assert await trials.wrong("regex", "(") is None
        first = trials._process
        assert first is not None
        trials.close()
        async with asyncio.timeout(10):
            assert await first.wait() == -signal.SIGKILL
        assert await trials.wrong("json", GOOD) is None
        assert trials._process is None
    finally:
        trials.close()


async def test_one_that_takes_too_long_is_refused_and_its_process_replaced() -> None:
    trials = Trials(tokenizer, compact=True, seconds=1e-6)
    try:
        wrong = await trials.wrong("json", GOOD)
        assert wrong == "takes longer than 1e-06 s to compile"
        assert trials._process is None
        # Known by now: asking again costs nothing.
        assert await trials.wrong("json", GOOD) == wrong
        assert trials._process is None
    finally:
        trials.close()


async def test_only_so_many_wait() -> None:
    trials = Trials(tokenizer, compact=True, seconds=60)
    asked = [asyncio.create_task(trials.wrong("regex", f"a{{{n}}}")) for n in range(17)]
    try:
        done, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        (refused,) = done
        with pytest.raises(Overloaded):
            await refused
        # Who goes away while it is tried leaves nothing behind.
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        assert trials._waiting == 0
    finally:
        trials.close()


async def test_the_process_ends_with_its_input() -> None:
    trials = Trials(tokenizer, compact=True, seconds=60)
    try:
        assert await trials.wrong("json", GOOD) is None
        child = trials._process
        assert child is not None
        assert child.stdin is not None
        child.stdin.close()
        async with asyncio.timeout(10):
            assert await child.wait() == 0
    finally:
        trials.close()


def test_plain_grammars_are_not_tried() -> None:
    none = {"json": None, "regex": None, "structural_tag": None}
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    dear = {"anyOf": [{"type": "string", "maxLength": 50 + i} for i in range(9)]}
    assert to_be_tried(SimpleNamespace(**none)) is None
    assert to_be_tried(SimpleNamespace(**none | {"json": schema})) is None
    assert to_be_tried(SimpleNamespace(**none | {"json": json.dumps(schema)})) is None
    assert to_be_tried(SimpleNamespace(**none | {"json": dear})) == ("json", json.dumps(dear))
    assert to_be_tried(SimpleNamespace(**none | {"regex": "[a-z]+"})) is None
    assert to_be_tried(SimpleNamespace(**none | {"regex": "(.?)+"})) == ("regex", "(.?)+")
    tag = json.dumps({"format": {"type": "json_schema", "json_schema": dear}})
    assert to_be_tried(SimpleNamespace(**none | {"structural_tag": tag})) == ("structural_tag", tag)
