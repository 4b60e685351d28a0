"""vLLM's log lines become stages, and reach our log from other processes."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from llmserve.engine.vllm.relay import Relay
from llmserve.types import Stage

CHILD = """
import json, logging.config, sys
logging.config.dictConfig(json.load(open(sys.argv[1])))
log = logging.getLogger("vllm.worker")
log.info("Starting to load model %s...", "m")
log.info("nothing of interest")
log.info("[backbone] Starting torch.compile")
log.info("init engine (profile, create kv cache, warmup model) took 3.00 s")
try:
    1 / 0
except ZeroDivisionError:
    log.exception("it broke\\nforged line")
"""


def run_child(config: Path) -> None:
    subprocess.run([sys.executable, "-c", CHILD, str(config)], check=True, timeout=30)


def test_stages_and_errors_arrive(caplog: pytest.LogCaptureFixture) -> None:
    stages: list[Stage] = []
    relay = Relay(logging.ERROR, stages.append)
    config = relay.write_config()
    with caplog.at_level(logging.DEBUG, "llmserve.vllm"):
        run_child(config)
        relay.close()
    assert stages == [Stage.LOADING, Stage.COMPILING, Stage.WARMING]
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "it broke" in record.getMessage()
    assert "ZeroDivisionError" in record.getMessage()
    assert not config.parent.exists()
    relay.close()


def test_a_child_that_outlives_the_relay_goes_on() -> None:
    relay = Relay(logging.ERROR, lambda _: None)
    config = relay.write_config()
    text = config.read_text("utf-8")
    relay.close()
    config.parent.mkdir()
    config.write_text(text, "utf-8")
    try:
        run_child(config)
    finally:
        config.unlink()
        config.parent.rmdir()
