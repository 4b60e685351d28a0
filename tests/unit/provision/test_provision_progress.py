"""Progress on a terminal, and where there is none."""

from __future__ import annotations

import pytest

from llmserve.provision import pull
from llmserve.provision.progress import terminal_progress


def test_a_line_for_each_step_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal_progress() as notify:
        for fraction in (0.1, 0.5, 1.0):
            notify("Getting [it]", fraction)
        notify("Unpacking", None)
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "Getting [it]\nUnpacking\n")


def test_bars_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with terminal_progress() as notify:
        notify("Getting it", 0.5)
        notify("Unpacking", None)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "Getting it" in shown.err
    assert "100%" in shown.err


def test_pull_gives_the_folder(demo_folder: object) -> None:
    assert pull("demo") == demo_folder
