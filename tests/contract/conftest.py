"""The engines that the contract suite runs against.

One engine of each kind serves the whole session (a real one takes 15 seconds to start);
``fresh_engine`` is for the few tests that must start or close one themselves. All async
fixtures and tests share one event loop: anyio keeps its runner for as long as a
session-scoped async fixture is alive.
"""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from llmserve.engine.fake import FakeEngine, Script
from llmserve.engine.protocol import Engine
from llmserve.engine.vllm import build_engine
from llmserve.settings import ModelSettings, Settings

MakeEngine = Callable[[], Engine]

# torch and vLLM warn while they are imported: their warnings are not our errors. On a
# busy machine that import and the first start alone take minutes.
_REAL = (
    pytest.mark.real,
    pytest.mark.filterwarnings("default"),
    pytest.mark.timeout(900),
)


def make_fake_engine() -> Engine:
    """At a pace at which a long answer is still running when a test looks."""
    return FakeEngine(Script(max_model_len=1024, seconds_per_token=0.001))


def make_vllm_engine(model: Path) -> Engine:
    """A tiny random Llama on vLLM, in float32: in bfloat16 the logits depend on who else
    is in the batch, and greedy answers with them; in float32 the difference between the
    first two candidates is many times that noise."""
    settings = Settings(
        model=ModelSettings(source=str(model), served_names=("tiny",)),
        engine={"dtype": "float32", "max_model_len": 1024, "max_num_seqs": 32},
    )
    return build_engine(settings, str(model))


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session", params=["fake", pytest.param("vllm", marks=_REAL)])
def make_engine(request: pytest.FixtureRequest) -> MakeEngine:
    """Makes unstarted engines of one kind."""
    if request.param == "fake":
        return make_fake_engine
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vllm is not installed")
    model: Path = request.getfixturevalue("tiny_folder")
    return lambda: make_vllm_engine(model)


@pytest.fixture(scope="session")
async def engine(make_engine: MakeEngine, anyio_backend: str) -> AsyncIterator[Engine]:
    engine = make_engine()
    try:
        await engine.start(lambda *_: None)
        yield engine
    finally:
        await engine.aclose()


@pytest.fixture
async def fresh_engine(make_engine: MakeEngine, anyio_backend: str) -> AsyncIterator[Engine]:
    """An engine that is not started."""
    engine = make_engine()
    try:
        yield engine
    finally:
        await engine.aclose()


@pytest.fixture
def vllm_engine(engine: Engine) -> Engine:
    """The engine on vLLM, for tests of how it works inside."""
    if isinstance(engine, FakeEngine):
        pytest.skip("the fake engine has one way only")
    return engine
