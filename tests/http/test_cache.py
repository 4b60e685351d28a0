"""The response cache, over a real socket."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from llmserve.engine.fake import Script
from tests.http.harness import App, poll, running
from tests.http.test_limits import bearer

ON = {"enabled": True}
HELLO = [{"role": "user", "content": "Hello"}]
GREEDY: dict[str, dict[str, Any]] = {
    "/generate": {"prompt": "Hello", "temperature": 0},
    "/generate/stream": {"prompt": "Hello", "seed": 1},
    "/v1/completions": {"prompt": "Hello", "temperature": 0},
    "/v1/chat/completions": {"messages": HELLO, "temperature": 0},
    "/v1/messages": {"messages": HELLO, "max_tokens": 9, "temperature": 0},
}
STREAMS = {
    "/generate/stream": GREEDY["/generate/stream"],
    **{
        path: GREEDY[path] | {"stream": True}
        for path in ("/v1/completions", "/v1/chat/completions", "/v1/messages")
    },
}


def tokens(app: App) -> float:
    return app.sample("llmserve_completion_tokens_total")


@pytest.mark.parametrize(("path", "body"), [*GREEDY.items(), *STREAMS.items()])
def test_the_same_request_gets_the_same_answer_without_the_engine(
    path: str, body: dict[str, Any]
) -> None:
    with running(cache=ON) as app:
        first = app.post(path, json=body, headers={"x-request-id": "one"})
        made = tokens(app)
        second = app.post(path, json=body, headers={"x-request-id": "two"})
        assert (first.headers["x-cache"], second.headers["x-cache"]) == ("miss", "hit")
        assert tokens(app) == made > 0
        assert stripped(second.text) == stripped(first.text)
        assert "one" not in json.dumps([line for line in second.text.split('"') if "-one" in line])
        assert app.outcomes() == {"completed": 2}
        assert app.sample("llmserve_cache_hits_total") == 1
        assert app.sample("llmserve_cache_misses_total") == 1
        assert app.sample("llmserve_cache_bytes") > 0
        poll(lambda: len(app.get("/v1/usage").json()["data"]) == 1)
        (row,) = app.get("/v1/usage").json()["data"]
        assert (row["requests"], row["completion_tokens"]) == (2, made)


def stripped(text: str) -> list[Any]:
    """The JSON documents in a reply without ids, dates, timings and prefix cache."""
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    documents = [json.loads(line) for line in lines or [text] if line != "[DONE]"]
    for document in documents:
        for name in ("id", "created", "timings"):
            document.pop(name, None)
        document.get("message", {}).pop("id", None)
        document.get("usage", {}).pop("cached_tokens", None)
    return documents


@pytest.mark.parametrize("path", GREEDY)
def test_what_may_come_out_differently_is_not_kept(path: str) -> None:
    body = {k: v for k, v in GREEDY[path].items() if k not in ("temperature", "seed")}
    with running(cache=ON) as app:
        for _ in range(2):
            reply = app.post(path, json=body | {"temperature": 0.7})
            assert "x-cache" not in reply.headers
        assert app.sample("llmserve_cache_misses_total") == 0


def test_it_is_off_by_default() -> None:
    with running() as app:
        for _ in range(2):
            assert "x-cache" not in app.post("/generate", json=GREEDY["/generate"]).headers


@pytest.mark.parametrize("shared", [False, True])
def test_keys_share_answers_on_purpose_only(shared: bool) -> None:
    with running(cache=ON | {"shared": shared}) as app:
        one, two = bearer(app.key("one")), bearer(app.key("two"))
        assert app.post("/generate", json=GREEDY["/generate"], headers=one).is_success
        reply = app.post("/generate", json=GREEDY["/generate"], headers=two)
        assert reply.headers["x-cache"] == ("hit" if shared else "miss")


def test_failures_are_not_kept() -> None:
    with running(Script(fail_on="Hello", fail_after_tokens=3), cache=ON) as app:
        for _ in range(2):
            reply = app.post("/v1/chat/completions", json=GREEDY["/v1/chat/completions"])
            assert reply.status_code == 500
        assert app.sample("llmserve_cache_misses_total") == 2


def test_identical_requests_at_the_same_time_cost_one() -> None:
    script = Script(seconds_per_token=0.01, reply_words=10)
    with running(script, cache=ON) as app, ThreadPoolExecutor(8) as pool:
        path, body = "/v1/chat/completions", GREEDY["/v1/chat/completions"]
        replies = list(pool.map(lambda _: app.post(path, json=body), range(8)))
        kinds = sorted(reply.headers["x-cache"] for reply in replies)
        assert kinds == ["hit"] * 7 + ["miss"]
        assert len({str(stripped(reply.text)) for reply in replies}) == 1


def test_a_client_that_leaves_hands_the_work_on() -> None:
    import httpx

    with running(Script(seconds_per_token=0.02, reply_words=20), cache=ON) as app:
        path, body = "/v1/completions", GREEDY["/v1/completions"]
        with ThreadPoolExecutor(2) as pool:
            leaving = pool.submit(app.post, path, json=body, timeout=0.2)
            poll(lambda: app.sample("llmserve_cache_misses_total") == 1)
            staying = pool.submit(app.post, path, json=body)
            assert isinstance(leaving.exception(), httpx.ReadTimeout)
            assert staying.result().headers["x-cache"] == "miss"
            assert staying.result().json()["choices"][0]["finish_reason"] == "stop"
