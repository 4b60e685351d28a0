"""Both stores, and a real PostgreSQL server when its binaries are installed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from postgres_server import Database, Server, binaries, running
from state_support import Opener

from llmserve.settings import StateSettings
from llmserve.state import Store, open_store

_NUMBERS = itertools.count()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """Skips where PostgreSQL is not installed."""
    folder = binaries()
    if folder is None:
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    with running(folder) as server:
        yield server


@pytest.fixture
def database(postgres: Server) -> Iterator[Database]:
    """A fresh database for each test."""
    name = f"test_{next(_NUMBERS)}"
    postgres.run(f"CREATE DATABASE {name}")
    yield Database(postgres, name)
    postgres.run(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=["sqlite", "postgres"])
def state(request: pytest.FixtureRequest, tmp_path: Path) -> StateSettings:
    """Settings for a fresh store, over each of the databases."""
    if request.param == "sqlite":
        return StateSettings.model_validate({"url": f"sqlite://{tmp_path}/state.db"})
    database: Database = request.getfixturevalue("database")
    return StateSettings.model_validate({"url": database.url})


@pytest.fixture
def another_store(state: StateSettings) -> Iterator[Opener]:
    """Open the same store once more, as another process would."""
    opened: list[Store] = []

    def connect() -> Store:
        opened.append(open_store(state, Path("/dev/null/unused")))
        return opened[-1]

    yield connect
    for each in opened:
        each.close()


@pytest.fixture
def store(another_store: Opener) -> Store:
    return another_store()
