"""The same requests to ``llmserve serve`` and to vLLM's own server: the same answers, up to
ids, times and the nulls that OpenAI's schema does not allow."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from bench.cases import MODEL
from bench.servers import ENGINE, Server, running

Json = dict[str, Any]

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
PROMPTS: dict[str, Json] = {
    CHAT: {
        "messages": [
            {"role": "system", "content": "You are brief. 🙂"},
            {"role": "user", "content": "Grüße aus 東京, ¿qué tal?"},
        ]
    },
    COMPLETION: {"prompt": "Once upon a time in 東京 🙂"},
}
SAMPLINGS: dict[str, Json] = {
    "plain": {"max_tokens": 40},
    "one token": {"max_tokens": 1},
    "usage": {"max_tokens": 9, "stream_options": {"include_usage": True}},
    "no usage": {"max_tokens": 9, "stream_options": {"include_usage": False}},
    "stop": {"max_tokens": 60, "stop": ["e", "a"]},
    "stop kept": {"max_tokens": 60, "stop": ["e"], "include_stop_str_in_output": True},
    "penalties": {"max_tokens": 20, "presence_penalty": 1.0, "repetition_penalty": 1.2},
    "emoji": {"max_tokens": 30, "structured_outputs": {"regex": "(🙂|東京|café){4}"}},
    "several": {"max_tokens": 12, "n": 2, "temperature": 1.0, "seed": 3},
}
LOGPROBS: dict[str, Json] = {
    CHAT: {"max_tokens": 8, "logprobs": True, "top_logprobs": 2},
    COMPLETION: {"max_tokens": 8, "logprobs": 2},
}
WRONG: dict[str, Json] = {
    "more than fits": {"max_tokens": 100_000},
    "below zero": {"temperature": -1},
    "no number": {"top_p": "much"},
    "a bad regex": {"structured_outputs": {"regex": "("}},
}

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is not installed"),
]


@pytest.fixture(scope="module")
def both(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    """In float32: what is next to each other in a batch must not decide between two tokens."""
    logs = tmp_path_factory.mktemp("beside")
    with pytest.MonkeyPatch.context() as patch:
        # An engine that ran in this process has told its own children where to log.
        for name in [name for name in os.environ if name.startswith("VLLM_")]:
            patch.delenv(name)
        with running(tiny_folder, ENGINE | {"dtype": "float32"}, logs) as servers:
            yield servers


def ask(server: Server, path: str, more: Json) -> httpx.Response:
    body = {"model": MODEL, "temperature": 0} | PROMPTS[path] | more
    return httpx.post(f"http://127.0.0.1:{server.port}{path}", json=body, timeout=120)


PASSING = ("created", "cached_tokens", "created_cache_tokens", "system_fingerprint")


def comparable(value: Any) -> Any:
    """Without nulls. Of what is of the moment or of the engine only that it is there: times,
    what the prefix cache had, the hash of all settings, and of ids their kind."""
    if isinstance(value, dict):
        there = {name: each for name, each in value.items() if each is not None}
        moment = {name: type(each) for name, each in there.items() if name in PASSING}
        kind = {"id": there["id"].partition("-")[0]} if "id" in there else {}
        return {name: comparable(each) for name, each in there.items()} | moment | kind
    return [comparable(each) for each in value] if isinstance(value, list) else value


def frames_of(reply: httpx.Response) -> list[Json]:
    """The events of a stream: one id, one time, and an end."""
    *lines, done = filter(None, reply.text.split("\n"))
    assert done == "data: [DONE]"
    frames = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert len({(frame["id"], frame["created"]) for frame in frames}) == 1
    return [comparable(frame) for frame in frames]


def folded(reply: httpx.Response) -> tuple[dict[int | None, Json], dict[int | None, list[Json]]]:
    """What a stream says, by choice: texts together (an engine puts tokens together that come
    faster than they are read, and not twice in the same way), and the frames it begins and ends
    with. Then what the frames between these are besides their texts, each once."""
    said: dict[int | None, Json] = {}
    between: dict[int | None, list[Json]] = {}
    for frame in frames_of(reply):
        (choice,) = frame["choices"] or [{"finish_reason": "none"}]
        index, body = choice.get("index"), choice.get("delta", choice)
        last = "finish_reason" in choice
        name = "content" if "delta" in choice else "text"
        held = said.setdefault(index, {"text": "", "ends": []})
        held["text"] += body.get(name, "")
        if last or name in body:  # The last one has a text or not as it comes.
            body[name] = None
        if last or "role" in body:
            held["ends"].append(frame)
        elif frame not in between.setdefault(index, []):
            between[index].append(frame)
    return said, between


@pytest.mark.parametrize("path", PROMPTS)
@pytest.mark.parametrize("name", SAMPLINGS)
def test_a_stream_says_the_same(both: list[Server], path: str, name: str) -> None:
    replies = [ask(each, path, {"stream": True} | SAMPLINGS[name]) for each in both]
    assert [each.status_code for each in replies] == [200, 200], replies[1].text
    (ours, our_between), (theirs, their_between) = map(folded, replies)
    assert ours == theirs
    assert all(len(each) == 1 for each in [*our_between.values(), *their_between.values()])
    both_have = our_between.keys() & their_between.keys()
    assert all(our_between[index] == their_between[index] for index in both_have)
    assert both_have or name != "plain"


@pytest.mark.parametrize("path", PROMPTS)
@pytest.mark.parametrize("name", [*SAMPLINGS, "log probabilities"])
def test_a_reply_says_the_same(both: list[Server], path: str, name: str) -> None:
    asked = SAMPLINGS.get(name, LOGPROBS[path])
    more = {key: value for key, value in asked.items() if key != "stream_options"}
    ours, theirs = (ask(each, path, more) for each in both)
    assert ours.status_code == theirs.status_code == 200, theirs.text
    assert comparable(ours.json()) == comparable(theirs.json())


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", PROMPTS)
@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_wrong_on_both(
    both: list[Server], path: str, name: str, stream: bool
) -> None:
    """In words of their own: ours are in OpenAI's envelope, and before the stream begins.
    vLLM finds out about a grammar when its stream has begun."""
    ours, theirs = (ask(each, path, {"stream": stream} | WRONG[name]) for each in both)
    late = stream and name == "a bad regex"
    assert theirs.status_code == (200 if late else 400), theirs.text
    assert '"error"' in theirs.text
    assert ours.status_code == 400, ours.text
    assert ours.json()["error"]["type"] == "invalid_request_error"
