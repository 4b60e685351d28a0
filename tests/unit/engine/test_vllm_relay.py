"""vLLM's log lines become stages, and reach our log from other processes."""

from __future__ import annotations

import logging
import select
import signal
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
from llmserve.errors import InvalidRequest
try:
    raise InvalidRequest("the client is told of this")
except InvalidRequest:
    log.exception("Error in chat completion stream generator.")
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


WAITING = """
import json, logging.config, sys, time
logging.config.dictConfig(json.load(open(sys.argv[1])))
print("begun", flush=True)
time.sleep(60)
"""
SERVER = """
import logging, subprocess, sys, time
from llmserve.engine.vllm.relay import Relay
relay = Relay(logging.ERROR, lambda _: None)
child = [sys.executable, "-c", sys.argv[1], str(relay.write_config())]
subprocess.Popen(child, stdin=subprocess.DEVNULL)
time.sleep(60)
"""


def test_a_child_ends_with_the_relay() -> None:
    relay = Relay(logging.ERROR, lambda _: None)
    command = [sys.executable, "-c", WAITING, str(relay.write_config())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "begun\n"
        relay.close()
        assert child.wait(5) == -signal.SIGKILL


def test_a_child_that_starts_when_the_server_is_gone_ends_and_tidies_up() -> None:
    relay = Relay(logging.ERROR, lambda _: None)
    config = relay.write_config()
    text = config.read_text("utf-8")
    relay.close()
    config.parent.mkdir()
    config.write_text(text, "utf-8")
    command = [sys.executable, "-c", WAITING, str(config)]
    assert subprocess.run(command, timeout=30, check=False).returncode == -signal.SIGKILL
    assert not config.parent.exists()


def test_a_child_ends_when_the_server_is_killed() -> None:
    command = [sys.executable, "-c", SERVER, WAITING]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "begun\n"
        server.kill()
        # The child holds the other end of this pipe: it closes when the child ends.
        readable, _, _ = select.select([server.stdout], [], [], 5)
        assert readable
        assert server.stdout.read() == ""
