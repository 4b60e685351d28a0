"""Limits of a key, and what it has used, over a real socket."""

from __future__ import annotations

import datetime
from typing import Any

import openai
import pytest

from llmserve.engine.fake import Reply, Script
from llmserve.types import Limits, Scope
from tests.conformance.validator import assert_openai
from tests.http.harness import App, poll, running
from tests.http.test_overload import in_background

FOUR = Script(replies=(Reply("", "one two three"),), stall_on="STALL")
ASK: dict[str, Any] = {"prompt": "Hello", "max_tokens": 3}


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def test_requests_per_minute() -> None:
    with running(FOUR) as app:
        headers = bearer(app.key(limits=Limits(requests_per_minute=3)))
        left = []
        for _ in range(3):
            reply = app.post("/v1/completions", json=ASK, headers=headers)
            assert reply.status_code == 200
            assert reply.headers["x-ratelimit-limit-requests"] == "3"
            left.append(int(reply.headers["x-ratelimit-remaining-requests"]))
        assert left == [2, 1, 0]
        refused = app.post("/v1/completions", json=ASK, headers=headers)
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert 1 <= int(refused.headers["retry-after"]) <= 20
        assert refused.headers["x-ratelimit-remaining-requests"] == "0"
        assert_openai("error", refused.json())
        messages = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 3}
        reply = app.post("/v1/messages", json=messages, headers=headers)
        assert (reply.status_code, reply.json()["error"]["type"]) == (429, "rate_limit_error")
        assert app.post("/generate", json=ASK, headers=bearer(app.key("other"))).status_code == 200


def test_tokens_per_minute_are_settled_by_what_was_used() -> None:
    with running(FOUR) as app:
        headers = bearer(app.key(limits=Limits(tokens_per_minute=1000)))
        reply = app.post("/v1/completions", json=ASK | {"max_tokens": 900}, headers=headers)
        used = reply.json()["usage"]["total_tokens"]
        assert used < 50
        reply = app.post("/v1/completions", json=ASK, headers=headers)
        left = int(reply.headers["x-ratelimit-remaining-tokens"])
        assert 900 < left < 1000, "what was reserved and not used came back"
        # More than a whole minute's worth passes when nothing is used, and uses it all up.
        headers = bearer(app.key("other", limits=Limits(tokens_per_minute=1000)))
        big = ASK | {"max_tokens": 4000, "prompt": "STALL"}
        with in_background(app, "/v1/completions", big, headers=headers):
            refused = app.post("/v1/completions", json=ASK | {"max_tokens": 500}, headers=headers)
            assert refused.status_code == 429
            assert "tokens" in refused.json()["error"]["message"]
            app.call(lambda: app.services.gateway.running.stop_all(_error))


def _error() -> Any:
    from llmserve.errors import Cancelled

    return Cancelled()


def test_concurrency() -> None:
    with running(FOUR) as app:
        headers = bearer(app.key(limits=Limits(concurrency=1)))
        with in_background(app, "/generate", {"prompt": "STALL"}, headers=headers):
            assert app.post("/generate", json=ASK, headers=headers).status_code == 429
            (job,) = app.get("/v1/requests", headers=headers).json()["data"]
            app.delete(f"/v1/requests/{job['id']}", headers=headers)
        poll(lambda: app.post("/generate", json=ASK, headers=headers).status_code == 200)


def test_a_used_up_budget_is_told_apart_and_not_retried() -> None:
    with running(FOUR) as app:
        key = app.key(limits=Limits(tokens_per_day=10))
        client = openai.OpenAI(base_url=f"{app.url}/v1", api_key=key)

        def ask() -> Any:
            return client.completions.create(model="default", prompt="Hello", max_tokens=3)

        def ask_until_refused() -> None:
            for _ in range(20):
                ask()

        with pytest.raises(openai.RateLimitError) as caught:
            ask_until_refused()
        assert caught.value.code == "insufficient_quota"
        assert caught.value.response.headers["x-should-retry"] == "false"
        assert app.outcomes()["rejected"] == 1, "the SDK did not try again"


def test_somebody_elses_requests_are_neither_seen_nor_ended() -> None:
    with running(FOUR) as app:
        mine, other = bearer(app.key("mine")), bearer(app.key("other"))
        admin = bearer(app.key("admin", scopes=frozenset({Scope.ADMIN})))
        with in_background(app, "/generate", {"prompt": "STALL"}, headers=mine) as future:
            (job,) = app.get("/v1/requests", headers=mine).json()["data"]
            path = f"/v1/requests/{job['id']}"
            assert app.get("/v1/requests", headers=other).json()["data"] == []
            assert app.delete(path, headers=other).status_code == 404
            assert not future.done()
            (seen,) = app.get("/v1/requests", headers=admin).json()["data"]
            assert (seen["id"], seen["key"]) == (job["id"], "mine")
            assert app.delete(path, headers=admin).status_code == 200
            assert future.result().status_code == 499


def usage(app: App, headers: dict[str, str], **query: str) -> list[dict[str, Any]]:
    reply = app.get("/v1/usage", params=query, headers=headers)
    assert reply.status_code == 200, reply.text
    rows: list[dict[str, Any]] = reply.json()["data"]
    return rows


def test_usage_is_what_the_replies_said() -> None:
    with running(FOUR) as app:
        mine, other = bearer(app.key("mine")), bearer(app.key("other"))
        admin = bearer(app.key("admin", scopes=frozenset({Scope.ADMIN})))
        said = {"prompt_tokens": 0, "completion_tokens": 0}
        for path in ("/v1/completions", "/generate"):
            for _ in range(3):
                reply = app.post(path, json=ASK, headers=mine).json()["usage"]
                said = {name: said[name] + reply[name] for name in said}
        assert app.post("/generate", json=ASK | {"n": 99}, headers=mine).status_code == 400
        assert app.post("/generate", json=ASK, headers=other).status_code == 200
        poll(lambda: sum(row["requests"] for row in usage(app, admin)) == 8)
        rows = usage(app, mine)
        by_outcome = {row["outcome"]: row for row in rows}
        assert {name: row["requests"] for name, row in by_outcome.items()} == {
            "completed": 6,
            "invalid": 1,
        }
        assert {name: by_outcome["completed"][name] for name in said} == said
        assert {row["key_id"] for row in rows} == {"id-mine"}
        assert {row["key_id"] for row in usage(app, admin)} == {"id-mine", "id-other"}
        assert {row["key_id"] for row in usage(app, admin, key="id-other")} == {"id-other"}
        tomorrow = datetime.datetime.now(datetime.UTC).date() + datetime.timedelta(days=1)
        assert usage(app, mine, **{"from": str(tomorrow), "to": str(tomorrow)}) == []
        assert app.get("/v1/usage", params={"key": "id-mine"}, headers=other).status_code == 404


@pytest.mark.parametrize(
    "query", [{"from": "yesterday"}, {"to": "2026-13-01"}, {"days": "3"}, {"from": "2020-01-01"}]
)
def test_usage_queries_are_checked(query: dict[str, str]) -> None:
    with running() as app:
        reply = app.get("/v1/usage", params=query)
        assert reply.status_code == 400
        assert reply.json()["error"]["param"] in query


def test_a_request_that_the_server_had_no_room_for_has_used_up_nothing() -> None:
    with running(FOUR, admission={"max_running": 1, "max_queue": 0}) as app:
        headers = bearer(app.key(limits=Limits(requests_per_minute=2)))
        with in_background(app, "/generate", {"prompt": "STALL"}, headers=bearer(app.key("other"))):
            for _ in range(5):
                assert app.post("/generate", json=ASK, headers=headers).status_code == 503
            app.call(lambda: app.services.gateway.running.stop_all(_error))
        poll(lambda: app.post("/generate", json=ASK, headers=headers).status_code == 200)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/generate", {"prompt": "Hi", "ignore_eos": True}),
        ("/generate", {"prompt": "Hi", "max_tokens": 30, "n": 8}),
        ("/v1/completions", {"prompt": ["a", "b", "c", "d"], "max_tokens": 40}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]}),
    ],
)
def test_no_request_can_overspend_the_budget_of_the_day(path: str, body: dict[str, Any]) -> None:
    with running(FOUR) as app:
        headers = bearer(app.key(limits=Limits(tokens_per_day=100)))
        reply = app.post(path, json=body, headers=headers)
        assert reply.status_code == 429, reply.text
        assert reply.json()["error"]["code"] == "insufficient_quota"
        assert "max_tokens" in reply.json()["error"]["message"]
        assert app.post("/generate", json=ASK, headers=headers).status_code == 200
