"""``llmserve bench`` against the real application, with a scripted engine behind it."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmserve.cli import main
from llmserve.cli.bench import bench
from llmserve.engine.fake import Script
from tests.http.harness import App, running

QUICK = ("--requests", "6", "--concurrency", "2", "--output-tokens", "8", "--ignore-eos")
STEADY = Script(seconds_per_token=0.02, prefill_seconds=0.05, reply_words=400)


@pytest.fixture(scope="module")
def app() -> Iterator[App]:
    with running(STEADY) as app:
        yield app


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run the command as ``llmserve`` does; its exit code."""
    monkeypatch.setattr(main, "COMMANDS", (bench,))
    for name in ("LLMSERVE_CLIENT_URL", "LLMSERVE_CLIENT_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    return main.run(["bench", *arguments])


def measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> dict[str, Any]:
    """Run it and read its JSON."""
    assert run(monkeypatch, *arguments, "--json", "-") == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_the_pace_of_the_engine_is_what_is_measured(
    app: App,
    endpoint: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = ("--url", app.url, "--endpoint", endpoint, "--prompt-tokens", "80", *QUICK)
    data = measured(monkeypatch, capsys, *given)
    figures = data["samples"][0]["figures"]
    assert figures["completed"] == 6
    assert figures["failed"] == 0
    assert figures["total_output_tokens"] == 6 * 8
    # The lengths of words are not exact in tokens; the mean of six prompts is near.
    assert 0.9 < figures["total_input_tokens"] / (6 * 80) < 1.1
    # The engine's time for 7 steps, and what a busy machine may add to it.
    assert 19 < figures["median_tpot_ms"] < 100
    assert figures["median_ttft_ms"] > 50
    assert data["servers"]["A"]["model"] in (
        each["id"] for each in app.get("/v1/models").json()["data"]
    )


def test_what_the_server_counted_is_what_is_reported(
    app: App, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = app.outcomes().get("completed", 0)
    data = measured(monkeypatch, capsys, "--url", app.url, "--warmup", "3", *QUICK)
    # Two requests for calibration, three for warm-up, six that count.
    assert app.outcomes()["completed"] - before == 2 + 3 + 6
    assert data["samples"][0]["figures"]["completed"] == 6


def test_reports_and_a_comparison(
    app: App,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    page, data = tmp_path / "report.html", tmp_path / "report.json"
    two = ("--url", app.url, "--against", f"{app.url}/v1", "--rounds", "2")
    files = ("--html", str(page), "--json", str(data), "--details")
    slo = ("--slo", "e2el:60s", "--require", "100%")
    assert run(monkeypatch, *two, *files, *slo, *QUICK) == 0
    said = capsys.readouterr()
    assert "A against B at 2 at once" in said.out
    assert "step 4/4" in said.err
    samples = json.loads(data.read_text("utf-8"))["samples"]
    assert [each["server"] for each in samples] == ["A", "B", "A", "B"]
    assert all(len(each["requests"]) == 6 for each in samples)
    html = page.read_text("utf-8")
    assert "<svg" in html
    assert "A against B at 2 at once" in html


def test_an_open_loop_ramp(
    app: App, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = ("--rate", "5:15:5", "--requests", "5", "--output-tokens", "4", "--sharegpt-like")
    data = measured(monkeypatch, capsys, "--url", app.url, "--seed", "4", *shape)
    assert [each["level"] for each in data["steps"]] == [5, 10, 15]
    assert data["seed"] == 4
    assert all(each["figures"]["completed"] == 5 for each in data["samples"])


def test_an_objective_that_is_missed_has_its_own_exit_code(
    app: App, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slo = ("--slo", "ttft:1ms", "--require", "50")
    assert run(monkeypatch, "--url", app.url, *slo, *QUICK) == 3
    said = capsys.readouterr()
    assert "--require 50 % was missed at load 2" in said.err
    assert "0.0%" in said.out


def test_a_server_that_refuses_is_a_failure_with_its_words(
    app: App, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--url", app.url, "--model", "no-such-model", *QUICK) == 1
    assert "no-such-model" in capsys.readouterr().err


def test_no_server_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert run(monkeypatch, "--url", f"http://127.0.0.1:{port}") == 1
    assert "No server answers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--rate", "0"), "--rate"),
        (("--rate", "1", "--concurrency", "1"), "not both"),
        (("--concurrency", "1.5"), "--concurrency"),
        (("--slo", "speed:1"), "--slo"),
        (("--require", "90"), "--slo"),
        (("--slo", "ttft:1", "--require", "101"), "--require"),
        (("--slo", "ttft:1", "--require", "0.95"), "say 95%, or 0.95%"),
        (("--duration", "soon"), "--duration"),
        (("--prompt-tokens", "0"), "--prompt-tokens"),
        (("--sharegpt", "nowhere.json"), "nowhere.json"),
        (("--body", "temperature"), "--body"),
        (("--body", "stream=false"), "--body"),
        (("--json", "/nowhere/x.json"), "--json"),
        (("--against-model", "x"), "--against"),
        (("--url", "localhost:8000"), "http://HOST:PORT"),
        (("--requests", "0"), "--requests"),
        (("--api-key", "ä"), "API key"),
    ],
)
def test_what_is_asked_wrongly_is_named(
    arguments: tuple[str, ...],
    named: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(monkeypatch, *arguments) == 2
    assert named in capsys.readouterr().err
