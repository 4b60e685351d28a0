"""Hostile and mistaken input against the real engine: a 4xx in the right envelope that
names the field, and a server that serves the next request."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest

from tests.conformance.validator import assert_openai
from tests.e2e.harness import Server

CHAT = "/v1/chat/completions"
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}

NATIVE_CASES = [
    ({"temperature": -1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 10**12}, "max_tokens"),
    ({"max_tokens": 100_000}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"top_p": 0}, "top_p"),
    ({"n": 10**6}, "n"),
    ({"n": 0}, "n"),
    ({"stop": ["x" * 1_000_000] * 7}, "stop"),
    ({"stop": [""]}, "stop"),
    ({"logprobs": 10**6}, "logprobs"),
    ({"logit_bias": {"-5": 1}}, "logit_bias"),
    ({"logit_bias": {"99999999": 1}}, "logit_bias"),
    ({"seed": 2**70}, "seed"),
    ({"json_schema": {"type": "nonsense"}}, "json_schema"),
    ({"json_schema": {"$ref": "#"}}, "json_schema"),
    ({"regex": "(" * 50}, "regex"),
    ({"regex": "(((a|b|c){0,200}d{0,200}){0,200}e){0,200}"}, "regex"),
    ({"regex": "a^b"}, "regex"),
    ({"json_schema": {"not": {"type": "integer"}}}, "json_schema"),
    ({"json_schema": {"$ref": "http://example.com/\nforged"}}, "json_schema"),
    ({"json_schema": {"type": "integer", "const": "a"}}, "json_schema"),
    ({"json_schema": {"enum": list(range(3000))}}, "json_schema"),
    ({"timeout_s": 0}, "timeout_s"),
    ({"priority": 101}, "priority"),
    ({"regex": "a", "choice": ["b"]}, "choice"),
    ({"prompt": "and this"}, "prompt"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "king", "content": "x"}]}, "messages"),
    ({"messages": [{"role": "user", "content": ""}]}, "messages"),
    ({"colour": "red"}, "colour"),
    ({"inputs": "x"}, "inputs"),
    ({"model": 7}, "model"),
    ({"model": "gpt-4"}, "model"),
]

CHAT_CASES = [
    ({"temperature": -1}, "temperature"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 10**12}, "max_tokens"),
    ({"messages": "Hello"}, "messages"),
    ({"messages": [{"role": "user"}]}, "messages"),
    ({"best_of": 4}, "best_of"),
    ({"n": 10**6}, "n"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"chat_template": "{{ 1 }}"}, "chat_template"),
    ({"colour": "red"}, "colour"),
    ({"response_format": {"type": "poem"}}, "response_format"),
    (
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {"type": "nonsense"}},
            }
        },
        "response_format",
    ),
    ({"tool_choice": "required"}, "tools"),
    ({"min_tokens": 100_000}, "min_tokens"),
    ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
    ({"allowed_token_ids": [10**8]}, "allowed_token_ids"),
    ({"priority": -101}, "priority"),
    ({"timeout_s": "soon"}, "timeout_s"),
    ({"cache_salt": "mine"}, "cache_salt"),
    ({"structured_outputs": {"json": "{"}}, "structured_outputs.json"),
    ({"structured_outputs": {"json": '{"not": {}}'}}, "structured_outputs.json"),
    ({"structured_outputs": {"regex": "(.{0,8})+"}}, "structured_outputs"),
    ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"stop": ["x" * 1_000_000] * 7}, "stop"),
    ({"stream": "yes"}, "stream"),
    ({"model": "gpt-4"}, "model"),
]


def assert_refused(reply: httpx.Response, field: str) -> None:
    assert 400 <= reply.status_code < 500, reply.text
    assert_openai("error", reply.json())
    error = reply.json()["error"]
    assert field in (error["param"] or ""), error
    assert len(error["message"]) < 2000
    assert "Traceback" not in reply.text
    assert ".cc:" not in reply.text


def assert_serves(server: Server) -> None:
    assert server.post("/generate", HELLO).json()["usage"]["completion_tokens"] >= 1


@pytest.mark.parametrize(("change", "field"), NATIVE_CASES, ids=lambda value: str(value)[:40])
@pytest.mark.parametrize("path", ["/generate", "/generate/stream"])
def test_native(demo_server: Server, path: str, change: dict[str, Any], field: str) -> None:
    assert_refused(demo_server.post(path, HELLO | change), field)


@pytest.mark.parametrize(("change", "field"), CHAT_CASES, ids=lambda value: str(value)[:40])
@pytest.mark.parametrize("stream", [False, True])
def test_chat(demo_server: Server, stream: bool, change: dict[str, Any], field: str) -> None:
    assert_refused(demo_server.post(CHAT, HELLO | {"stream": stream} | change), field)


def test_a_number_beyond_64_bits_leaves_nothing_behind(demo_server: Server) -> None:
    body = HELLO | {"json_schema": {"type": "object", "items": -(2**63) - 1}}
    assert demo_server.post("/generate", body).status_code == 400
    assert demo_server.get("/healthz").json()["engine"]["running"] == 0


def test_nothing_of_a_bad_grammar_reaches_the_log(demo_server: Server) -> None:
    begun = len(demo_server.log)
    for change in (
        {"json_schema": {"$ref": "http://example.com/\n[00:00] forged"}},
        {"json_schema": {"type": "string", "pattern": "a^\n[00:00] forged"}},
        {"regex": "a{2,1}"},
    ):
        assert demo_server.post("/generate/stream", HELLO | change).status_code == 400
    assert "forged" not in demo_server.log[begun:]
    assert "Traceback" not in demo_server.log[begun:]


def test_the_server_serves_after_all_that(demo_server: Server) -> None:
    assert_serves(demo_server)
    assert demo_server.get("/readyz").status_code == 200


def test_a_prompt_longer_than_the_context_names_both_numbers(demo_server: Server) -> None:
    text = "word " * 9000
    before = demo_server.total("vllm:prompt_tokens_total")
    native = demo_server.post("/generate", {"prompt": text}).json()["error"]
    assert native["code"] == "context_length_exceeded"
    assert "9001" in native["message"]
    assert "8192" in native["message"]
    for stream in (False, True):
        body = {"messages": [{"role": "user", "content": text}], "stream": stream}
        reply = demo_server.post(CHAT, body)
        assert reply.status_code == 400
        error = reply.json()["error"]
        assert error["code"] == "context_length_exceeded"
        assert error["param"] == "messages"
        assert "8192" in error["message"]
        assert re.search(r"has 90\d\d tokens", error["message"])
    assert demo_server.total("vllm:prompt_tokens_total") == before


def test_bodies_that_are_no_json_object(demo_server: Server) -> None:
    headers = {"content-type": "application/json"}
    bodies = [b"", b"{", b"[]", b"null", b'{"prompt": "\xff"}', b'{"prompt": NaN}', b"1" * 5000]
    bodies += [b"[" * 100_000, b'{"a":' * 100_000, json.dumps({"stop": "\ud800"}).encode()]
    for path in ("/generate", CHAT, "/v1/messages"):
        for content in bodies:
            reply = httpx.post(demo_server.url + path, content=content, headers=headers)
            assert reply.status_code == 400, (path, content[:20], reply.text)
            kind = "anthropic_error" if path == "/v1/messages" else "error"
            assert_openai(kind, reply.json())
    assert_serves(demo_server)


def test_content_type_method_and_path(demo_server: Server) -> None:
    content = json.dumps(HELLO).encode()
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        reply = httpx.post(demo_server.url + CHAT, content=content, headers={"content-type": kind})
        assert reply.status_code == 415
        assert_openai("error", reply.json())
    assert demo_server.get(CHAT).status_code == 405
    assert demo_server.get("/v1/nothing").status_code == 404
    assert_openai("error", demo_server.get("/v1/nothing").json())


def test_ten_megabytes_of_body_are_refused(demo_server: Server) -> None:
    body = HELLO | {"stop": ["x" * 1_000_000] * 10}
    reply = demo_server.post(CHAT, body)
    assert reply.status_code == 413
    assert_openai("error", reply.json())
    assert_serves(demo_server)
