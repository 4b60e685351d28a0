"""The native routes against the real demo model."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import DEMO
from tests.e2e.harness import Server, events

COLORS: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Name three colors."}],
    "temperature": 0,
    "max_tokens": 40,
}
ANSWER = "1. Red\n2. Blue\n3. Green"


def test_generate(demo_server: Server) -> None:
    reply = demo_server.post("/generate", COLORS)
    assert reply.status_code == 200
    body = reply.json()
    assert body["text"] == ANSWER
    assert body["model"] == DEMO
    assert body["model_version"] == "1"
    assert body["finish_reason"] == "stop"
    assert body["id"] == reply.headers["x-request-id"]
    assert body["usage"]["prompt_tokens"] == 34
    assert body["usage"]["completion_tokens"] == 12
    timings = body["timings"]
    assert 0 < timings["ttft_s"] <= timings["total_s"]
    assert timings["queue_s"] >= 0
    assert timings["tokens_per_s"] > 1


def test_tokens_arrive_one_by_one(demo_server: Server) -> None:
    url = demo_server.url + "/generate/stream"
    arrivals = []
    with httpx.stream("POST", url, json=COLORS, timeout=60) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-cache"
        assert response.headers["x-accel-buffering"] == "no"
        seen = []
        for event in events(response):
            seen.append(event)
            arrivals.append(time.monotonic())
    assert [event["id"] for event in seen] == [str(i) for i in range(len(seen))]
    assert [event["event"] for event in seen] == ["token"] * (len(seen) - 1) + ["done"]
    assert "".join(event["data"]["text"] for event in seen[:-1]) == ANSWER
    assert sum(event["data"]["tokens"] for event in seen[:-1]) == 12
    done = seen[-1]["data"]
    assert done["usage"]["completion_tokens"] == 12
    assert done["finish_reason"] == "stop"
    # Not all at the end: the first token came well before the last one.
    assert len(set(arrivals)) > 6
    assert arrivals[-1] - arrivals[0] > 0.02


def test_prompt_is_continued_as_it_is(demo_server: Server) -> None:
    request = {"prompt": "One, two, three,", "temperature": 0, "max_tokens": 4}
    assert "four" in demo_server.post("/generate", request).json()["text"]


def test_log_probabilities_and_stop(demo_server: Server) -> None:
    body = demo_server.post("/generate", COLORS | {"logprobs": 2, "stop": "\n2"}).json()
    (choice,) = body["choices"]
    assert choice["text"] == body["text"] == "1. Red"
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", "\n2")
    first = choice["logprobs"][0]
    assert first["token"] == "1"
    assert len(first["top"]) == 2
    assert first["top"][0]["logprob"] >= first["top"][1]["logprob"]


def test_several_choices(demo_server: Server) -> None:
    request = COLORS | {"n": 3, "temperature": 1, "seed": 5, "max_tokens": 8}
    body = demo_server.post("/generate", request).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert len({choice["text"] for choice in body["choices"]}) > 1
    with httpx.stream("POST", demo_server.url + "/generate/stream", json=request) as response:
        *tokens, done = list(events(response))
    for choice in body["choices"]:
        parts = [t["data"]["text"] for t in tokens if t["data"]["index"] == choice["index"]]
        assert "".join(parts) == choice["text"]
    assert [end["index"] for end in done["data"]["choices"]] == [0, 1, 2]


@pytest.mark.parametrize(
    ("constraint", "check"),
    [
        ({"choice": ["yes", "no"]}, lambda text: text in ("yes", "no")),
        ({"regex": "[0-9]{3}-[0-9]{2}"}, lambda text: len(text) == 6 and text[3] == "-"),
        (
            {
                "json_schema": {
                    "type": "object",
                    "properties": {"n": {"type": "boolean"}},
                    "required": ["n"],
                    "additionalProperties": False,
                }
            },
            lambda text: isinstance(json.loads(text)["n"], bool),
        ),
    ],
)
def test_constraints(demo_server: Server, constraint: dict[str, Any], check: Any) -> None:
    body = demo_server.post("/generate", COLORS | constraint).json()
    assert body["finish_reason"] == "stop"
    assert check(body["text"])


def test_seed_and_sampling_fields(demo_server: Server) -> None:
    request = COLORS | {
        "temperature": 1,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.01,
        "seed": 11,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.1,
        "repetition_penalty": 1.05,
        "priority": 3,
    }
    texts = {demo_server.post("/generate", request).json()["text"] for _ in range(2)}
    assert len(texts) == 1
    request = COLORS | {"ignore_eos": True}
    assert demo_server.post("/generate", request).json()["usage"]["completion_tokens"] == 40


def test_metrics_equal_what_clients_received(demo_server: Server) -> None:
    names = ("llmserve_prompt_tokens_total", "llmserve_completion_tokens_total")
    before = [demo_server.total(name) for name in names]
    requests_before = demo_server.total("llmserve_requests_total")
    prompt = completion = 0
    for i in range(4):
        usage = demo_server.post("/generate", COLORS | {"max_tokens": 3 + i}).json()["usage"]
        prompt += usage["prompt_tokens"]
        completion += usage["completion_tokens"]
    chat = {"messages": COLORS["messages"], "max_tokens": 7, "n": 2}
    usage = demo_server.post("/v1/chat/completions", chat).json()["usage"]
    prompt += usage["prompt_tokens"]
    completion += usage["completion_tokens"]
    assert demo_server.post("/v1/chat/completions", {"messages": 3}).status_code == 400
    after = [demo_server.total(name) for name in names]
    assert [b - a for a, b in zip(before, after, strict=True)] == [prompt, completion]
    assert demo_server.total("llmserve_requests_total") - requests_before == 6
    assert demo_server.total("llmserve_requests_in_flight") == 0
    gaps = demo_server.total("llmserve_inter_token_latency_seconds_count")
    assert gaps > 0
    assert demo_server.total("llmserve_time_to_first_token_seconds_count") > 0
    assert demo_server.total("vllm:prompt_tokens_total") > 0
