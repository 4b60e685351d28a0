"""``llmserve generate`` against a real HTTP server."""

from __future__ import annotations

import json

import pytest
from cli_support import Reply, Run, Stub, sse

DONE = sse({"finish_reason": "stop", "usage": {"completion_tokens": 2}}, name="done")


def tokens(*texts: str) -> list[bytes]:
    return sse(*({"index": 0, "text": text, "tokens": 1} for text in texts), name="token")


def test_only_the_text_goes_to_standard_output(llmserve: Run, stub: Stub) -> None:
    stub.on("/generate/stream", Reply([*tokens("Par", "is"), b": keep-alive\n\n", *DONE]))
    done = llmserve("generate", "The capital of France is", "--url", stub.url)
    assert (done.returncode, done.stdout, done.stderr) == (0, "Paris", "")
    assert stub.bodies("/generate/stream") == [{"prompt": "The capital of France is"}]


def test_options_reach_the_server(llmserve: Run, stub: Stub) -> None:
    stub.on("/generate/stream", Reply(DONE))
    options = "--model m --max-tokens 3 --temperature 0 --seed 0 --stop a --stop b --chat"
    done = llmserve(
        "generate", "hi", *options.split(), "--api-key", "k", "--url", f"{stub.url}/v1/"
    )
    assert done.returncode == 0
    ((_, headers, body),) = stub.seen
    assert headers["authorization"] == "Bearer k"
    assert body == {
        "model": "m",
        "max_tokens": 3,
        "temperature": 0.0,
        "seed": 0,
        "stop": ["a", "b"],
        "messages": [{"role": "user", "content": "hi"}],
    }


def test_url_and_key_come_from_the_environment(llmserve: Run, stub: Stub) -> None:
    stub.on("/generate/stream", Reply(DONE))
    environ = {"LLMSERVE_CLIENT_URL": stub.url, "LLMSERVE_CLIENT_API_KEY": "secret"}
    # A proxy for the outside world is not asked for this machine's own server.
    done = llmserve("generate", "hi", **environ, HTTP_PROXY="http://127.0.0.1:1", NO_PROXY="")
    assert done.returncode == 0
    assert stub.seen[0][1]["authorization"] == "Bearer secret"


@pytest.mark.parametrize("args", [[], ["-"]])
def test_the_prompt_comes_from_standard_input(llmserve: Run, stub: Stub, args: list[str]) -> None:
    stub.on("/generate/stream", Reply(DONE))
    assert llmserve("generate", *args, "--url", stub.url, stdin="a\n b é\n").returncode == 0
    assert stub.bodies("/generate/stream") == [{"prompt": "a\n b é"}]


def test_a_prompt_that_is_not_text_is_refused(llmserve: Run, stub: Stub) -> None:
    done = llmserve("generate", "--url", stub.url, stdin=b"\xff\xfe")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "llmserve: The prompt from standard input is not UTF-8 text.\n"
    assert stub.seen == []


def test_without_streaming_and_as_json(llmserve: Run, stub: Stub) -> None:
    reply = {"text": "Paris é", "finish_reason": "stop"}
    stub.on("/generate", Reply.json(reply))
    assert llmserve("generate", "x", "--no-stream", "--url", stub.url).stdout == "Paris é"
    done = llmserve("generate", "x", "--json", "--url", stub.url)
    assert json.loads(done.stdout) == reply
    assert done.stdout.endswith("}\n")


@pytest.mark.parametrize(
    ("reply", "printed", "said"),
    [
        (
            Reply.json({"error": {"message": "The model 'x' does not exist."}}, 404),
            "",
            "The model 'x' does not exist.",
        ),
        (Reply([b"<html>"], 502, "text/html"), "", "answered 502 Bad Gateway."),
        (Reply.json({"text": "x"}), "", "sent application/json, not a stream of events."),
        (
            Reply([*tokens("Par"), *sse({"error": {"message": "It died."}}, name="error")]),
            "Par",
            "The answer is incomplete: It died.",
        ),
        (
            Reply(tokens("Par")),
            "Par",
            "The answer is incomplete: the stream ended without a done event.",
        ),
        (
            Reply(tokens("Par"), then="cut"),
            "Par",
            "The answer is incomplete: the server closed the connection.",
        ),
        (Reply(sse("{nonsense")), "", "the server sent an event without JSON."),
        (Reply(sse({"a": 1})), "", "The server sent an answer without text."),
        (
            Reply.json({"error": {"message": "evil \x1b]0;title\x07"}}, 400),
            "",
            "evil ]0;title",
        ),
    ],
)
def test_failures_are_a_sentence_and_exit_1(
    llmserve: Run, stub: Stub, reply: Reply, printed: str, said: str
) -> None:
    stub.on("/generate/stream", reply)
    done = llmserve("generate", "x", "--url", stub.url)
    assert done.returncode == 1
    assert done.stdout == printed
    assert done.stderr.endswith(f"{said}\n")
    assert done.stderr.count("\n") == 1


def test_no_server(llmserve: Run) -> None:
    done = llmserve("generate", "x", "--url", "http://127.0.0.1:1")
    assert done.returncode == 1
    assert done.stderr == (
        "llmserve: No server answers at http://127.0.0.1:1. Start one with: llmserve serve\n"
    )


def test_half_a_surrogate_pair_can_be_printed(llmserve: Run, stub: Stub) -> None:
    stub.on("/generate/stream", Reply([*sse('{"text": "a\\ud83d"}', name="token"), *DONE]))
    done = llmserve("generate", "x", "--url", stub.url)
    assert (done.returncode, done.stdout) == (0, "a?")
