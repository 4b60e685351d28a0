"""``llmserve chat`` against a real HTTP server, in a pipe and on a terminal."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from cli_support import Reply, Run, Stub, clean_environment, sse

from llmserve.cli.main import run

PATH = "/v1/chat/completions"


def delta(text: str | None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}}]}


def answer(*texts: str) -> Reply:
    usage = {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 7}}
    role = {"choices": [{"index": 0, "delta": {"role": "assistant"}}]}
    return Reply([*sse(role), *sse(*map(delta, texts)), *sse(usage, "[DONE]")])


@pytest.fixture(autouse=True)
def _models(stub: Stub) -> None:
    stub.on("/v1/models", Reply.json({"data": [{"id": "smollm2"}, {"id": "other"}]}))


def test_each_line_is_a_turn_and_only_answers_are_printed(llmserve: Run, stub: Stub) -> None:
    stub.on(PATH, answer("Hel", "lo.\u2028"), answer("Bye.\n"), answer("Again."))
    lines = "hi\n\n  and you? \n/reset\nonce more\n/exit\nnever\n"
    done = llmserve("chat", "--url", stub.url, "--system", "Be brief.", stdin=lines)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "Hello.\u2028\nBye.\nAgain.\n"
    system = {"role": "system", "content": "Be brief."}
    hi = {"role": "user", "content": "hi"}
    assert [body["messages"] for body in stub.bodies(PATH)] == [
        [system, hi],
        [
            system,
            hi,
            {"role": "assistant", "content": "Hello.\u2028"},
            {"role": "user", "content": "and you?"},
        ],
        [system, {"role": "user", "content": "once more"}],
    ]


def test_options_reach_the_server(llmserve: Run, stub: Stub) -> None:
    stub.on(PATH, answer("x"))
    args = ["--model", "m", "--max-tokens", "5", "--temperature", "0", "--api-key", "k"]
    assert llmserve("chat", "--url", stub.url, *args, stdin="hi").returncode == 0
    ((path, headers, body),) = stub.seen
    assert (path, headers["authorization"]) == (PATH, "Bearer k")
    assert body == {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 5,
        "temperature": 0.0,
    }


def test_without_a_name_the_first_model_is_asked(llmserve: Run, stub: Stub) -> None:
    stub.on(PATH, answer("x"))
    assert llmserve("chat", "--url", stub.url, stdin="hi").returncode == 0
    assert stub.bodies(PATH)[0]["model"] == "smollm2"


@pytest.mark.parametrize(
    ("reply", "printed", "said"),
    [
        (
            Reply.json({"error": {"message": "The server is full.", "code": "x"}}, 503),
            "",
            "The server is full.",
        ),
        (
            Reply([*sse(delta("Hel"), {"error": {"message": "It died."}})]),
            "Hel\n",
            "The answer is incomplete: It died.",
        ),
        (
            Reply(sse(delta("Hel"))),
            "Hel\n",
            "The answer is incomplete: the stream ended without [DONE].",
        ),
        (
            Reply(sse(delta("Hel")), then="cut"),
            "Hel\n",
            "The answer is incomplete: the server closed the connection.",
        ),
    ],
)
def test_a_failure_in_a_pipe_ends_with_1(
    llmserve: Run, stub: Stub, reply: Reply, printed: str, said: str
) -> None:
    stub.on(PATH, reply)
    done = llmserve("chat", "--url", stub.url, stdin="hi\nmore\n")
    assert (done.returncode, done.stdout, done.stderr) == (1, printed, f"llmserve: {said}\n")
    assert len(stub.bodies(PATH)) == 1


def test_no_server(llmserve: Run) -> None:
    done = llmserve("chat", "--url", "http://127.0.0.1:1", stdin="hi")
    assert done.returncode == 1
    assert done.stderr.endswith("Start one with: llmserve serve\n")


def test_input_that_is_not_text(llmserve: Run, stub: Stub) -> None:
    done = llmserve("chat", "--url", stub.url, stdin=b"\xff\n")
    assert done.returncode == 1
    assert done.stderr == "llmserve: Standard input is not UTF-8 text.\n"


class Terminal:
    """A person at a terminal: types, and waits until something has been shown."""

    def __init__(self, process: subprocess.Popen[bytes], fd: int) -> None:
        self.process = process
        self._fd = fd
        self.text = ""

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def wait_for(self, *texts: str) -> None:
        """Read until these have been shown, in this order, since the last call."""
        for text in texts:
            while text not in self.text:
                readable, _, _ = select.select([self._fd], [], [], 20)
                assert readable, f"{text!r} was not shown, only {self.text!r}"
                self.text += os.read(self._fd, 65536).decode(errors="replace")
            self.text = self.text.partition(text)[2]


@contextmanager
def terminal(*args: str) -> Iterator[Terminal]:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "llmserve", *args],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=clean_environment(TERM="dumb"),
        start_new_session=True,
    )
    os.close(theirs)
    try:
        yield Terminal(process, ours)
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def test_on_a_terminal(stub: Stub) -> None:
    stub.on(PATH, answer("Hel", "lo\x1b[31m."), answer("Bye."))
    with terminal("chat", "--url", stub.url) as person:
        person.wait_for("smollm2", "Ctrl-D leaves", "> ")
        person.type("hi\n")
        person.wait_for("Hello[31m.", "7 tokens, ", "tokens/s", "> ")
        person.type("/help\n")
        person.wait_for("Ctrl-D leaves", "> ")
        person.type("/reset\n")
        person.wait_for("Forgotten.", "> ")
        person.type("bye\n")
        person.wait_for("Bye.", "> ")
        person.type("\x04")
        assert person.process.wait(30) == 0
    assert [len(body["messages"]) for body in stub.bodies(PATH)] == [1, 1]


def test_ctrl_c_stops_the_answer_and_closes_the_stream(stub: Stub) -> None:
    stub.on(PATH, Reply(sse(delta("Once upon")), then="hold"), answer("Yes."))
    with terminal("chat", "--url", stub.url) as person:
        person.wait_for("> ")
        person.type("a story\n")
        person.wait_for("Once upon")
        person.process.send_signal(signal.SIGINT)
        person.wait_for("Stopped.", "> ")
        assert stub.gone.wait(10)
        person.type("really?\n")
        person.wait_for("Yes.", "> ")
        person.type("/exit\n")
        assert person.process.wait(30) == 0
    assert stub.bodies(PATH)[1]["messages"] == [
        {"role": "user", "content": "a story"},
        {"role": "assistant", "content": "Once upon"},
        {"role": "user", "content": "really?"},
    ]


def test_on_a_terminal_a_failure_does_not_end_the_conversation(stub: Stub) -> None:
    stub.on(PATH, Reply.json({"error": {"message": "The server is full."}}, 503), answer("Yes."))
    with terminal("chat", "--url", stub.url) as person:
        person.wait_for("> ")
        person.type("hi\n")
        person.wait_for("The server is full.", "> ")
        person.type("now?\n")
        person.wait_for("Yes.", "> ")
        person.type("/exit\n")
        assert person.process.wait(30) == 1
    assert stub.bodies(PATH)[1]["messages"] == [{"role": "user", "content": "now?"}]


def test_ctrl_c_at_the_prompt_begins_a_new_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # In this process, because a signal to a process that is about to read a line may
    # come before or after readline is ready for it.
    presses = iter([KeyboardInterrupt, KeyboardInterrupt, EOFError])

    def pressed(_prompt: str) -> str:
        raise next(presses)

    monkeypatch.setattr("builtins.input", pressed)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert run(["chat", "--model", "m"]) == 0
    assert capsys.readouterr().out == "\n\n\n"


def test_ctrl_c_in_a_pipe_ends_with_130(stub: Stub) -> None:
    stub.on(PATH, Reply(sse(delta("Once upon")), then="hold"))
    process = subprocess.Popen(
        [sys.executable, "-m", "llmserve", "chat", "--url", stub.url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=clean_environment(),
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"a story\n")
    process.stdin.close()
    assert process.stdout.read(9) == b"Once upon"
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    assert stub.gone.wait(10)
    assert process.stderr is not None
    assert b"Traceback" not in process.stderr.read()
    process.stdout.close()
    process.stderr.close()
