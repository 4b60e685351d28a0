"""From the settings to a store."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from state_support import made_key

from llmserve.errors import ConfigError
from llmserve.settings import StateSettings
from llmserve.state import BudgetSpent, UsageRow, open_store, open_windows
from llmserve.state.windows import utc_day
from llmserve.types import Limits, Outcome

pytestmark = pytest.mark.anyio


def settings(url: str | None) -> StateSettings:
    return StateSettings.model_validate({"url": url})


@pytest.mark.parametrize("slashes", ["sqlite://", "sqlite:///"])
async def test_the_path_is_absolute(tmp_path: Path, slashes: str) -> None:
    place = tmp_path / "a b.db"
    open_store(settings(f"{slashes}{tmp_path}/a%20b.db"), tmp_path / "default.db").close()
    assert place.exists()
    assert not (tmp_path / "default.db").exists()


async def test_the_default_path(tmp_path: Path) -> None:
    open_store(settings(None), tmp_path / "x" / "default.db").close()
    assert (tmp_path / "x" / "default.db").exists()


@pytest.mark.parametrize(
    "url", ["sqlite://", "sqlite:///", "sqlite://relative.db", "sqlite:///a?mode=ro", "/plain/path"]
)
async def test_other_urls_are_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sqlite:///ABSOLUTE/PATH or postgresql://"):
        open_store(settings(url), tmp_path / "default.db")


async def test_a_restart_does_not_begin_the_day_anew(tmp_path: Path) -> None:
    store = open_store(settings(None), tmp_path / "default.db")
    caller = made_key(limits=Limits(tokens_per_day=100))[0].caller
    store.add_usage(
        [UsageRow(utc_day(time.time()), caller.id, "m", Outcome.COMPLETED, 1, 60, 0, 30)]
    )
    windows = open_windows(settings(None), store)
    await windows.open()
    await windows.take(caller, 10)
    with pytest.raises(BudgetSpent, match="10 of your 100 tokens"):
        await windows.take(caller, 11)
    await windows.aclose()
    store.close()
