"""Whatever is sent, the server does not fail: never a 500, errors in their envelope, and
ready afterwards. The same inputs in every run."""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmserve.engine.fake import Script
from tests.conformance.validator import validate
from tests.http.harness import App, running
from tests.http.raw import connected

HELLO = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
SAMPLING = {"temperature": 0.5, "top_p": 0.9, "seed": 1, "stream": False}
BODIES: dict[str, dict[str, Any]] = {
    "/generate": {
        **{"prompt": "Hello", "max_tokens": 4, "stop": ["\n"], "logprobs": 1, "n": 1, "top_k": 5},
        **{"logit_bias": {"1": 2}, "min_p": 0.1, "json_schema": {"type": "object"}},
        **{"timeout_s": 5, "priority": 0, "temperature": 0.5, "seed": 1},
    },
    "/v1/chat/completions": SAMPLING
    | {"messages": HELLO, "max_tokens": 4, "tools": [TOOL], "tool_choice": "auto", "n": 1}
    | {"logprobs": True, "top_logprobs": 1, "response_format": {"type": "text"}, "user": "me"}
    | {"stop": ["\n"], "logit_bias": {"1": 2}, "stream_options": None, "metadata": {"a": "b"}},
    "/v1/completions": SAMPLING
    | {"prompt": ["Hello"], "max_tokens": 4, "logprobs": 1, "echo": False, "suffix": None},
    "/v1/responses": SAMPLING
    | {"input": [{"role": "user", "content": "Hello"}], "max_output_tokens": 16, "store": False}
    | {"instructions": "Be brief.", "text": {"format": {"type": "text"}}},
    "/v1/messages": {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
    | {"system": "Be brief.", "temperature": 0.5, "stop_sequences": ["x"], "top_k": 5},
    "/v1/messages/count_tokens": {"messages": [{"role": "user", "content": "Hello"}]},
    "/v1/embeddings": {"input": ["Hello"], "encoding_format": "float"},
    "/tokenize": {"prompt": "Hello", "add_special_tokens": True},
    "/detokenize": {"tokens": [1, 2, 3]},
}
ODD: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**53 + 1, 2**63, 2**64, -(2**63) - 1, 10**30),
    *(0.5, -0.0, 5e-324, 1.7e308, -1.7e308, math.nan, math.inf),
    *("", " ", "\0", "\ud800", "\u202e\ufeff", "é" * 300, "🙂" * 50, "x" * 3000, "\r\nInjected: 1"),
    *("1", "true", "__proto__", "{{ 7*7 }}", "<|im_start|>system", "%s%n", "../../etc/passwd"),
    *([], {}, [[]], [None], {"": None}, [{}], {"type": "object"}, [1, "a", None]),
    *({"$ref": "#"}, {"type": ["string", "null"]}, {"url": "http://169.254.169.254/"}),
    [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/x.png"}}],
]
DEEP = [63, 65, 500, 20_000]
REFUSED = (501, 503, 504)
"""The only answers of 500 and more: what this model cannot do, not now, and too late."""

FUZZ = settings(
    max_examples=150,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
CHANCE = st.randoms(use_true_random=False)


@pytest.fixture(scope="module")
def app() -> Iterator[App]:
    script = Script(tasks=frozenset({"generate", "embed"}), reply_words=4)
    with running(script, server={"request_timeout_s": 5, "header_timeout_s": 1}) as app:
        yield app


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to everything in a JSON value."""
    if path:
        yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from places(inner, (*path, index))


def mutated(body: dict[str, Any], chance: random.Random) -> str:
    """A valid body with one to three things wrong, as JSON text that may be no JSON."""
    body = copy.deepcopy(body)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        ways = list(places(body))
        if not ways:
            break
        *above, last = chance.choice(ways)
        holder: Any = body
        for step in above:
            holder = holder[step]
        kind = chance.randrange(6)
        if kind == 0:
            del holder[last]
        elif kind == 1 and isinstance(holder, dict):
            holder[chance.choice(("colour", "", "\0", "x" * 300, "__class__"))] = holder.pop(last)
        elif kind == 2 and isinstance(holder, list):
            holder *= chance.choice((2, 50))
        else:
            holder[last] = copy.deepcopy(chance.choice(ODD))
    return spoiled(json.dumps(body), chance)


def spoiled(text: str, chance: random.Random) -> str:
    """The text itself with something wrong, now and then."""
    kind = chance.randrange(12)
    if kind == 0:
        depth = chance.choice(DEEP)
        return text[:-1] + ', "deep": ' + "[" * depth + "]" * depth + "}"
    if kind == 1:
        return text[:-1] + ", " + text[1:]
    if kind == 2:
        return text[: chance.randrange(len(text))]
    if kind == 3:
        return text.replace(":", chance.choice((": -", ": 1e999 ", ":: ", ": 0x1")), 1)
    return text


def assert_honest(path: str, reply: httpx.Response, sent: str) -> None:
    """Success, or an error that is the client's fault (or that the server may answer with)
    in the envelope of the route."""
    seen = f"{path} <- {sent[:2000]!r}\n{reply.status_code} {reply.text[:500]}"
    assert reply.status_code < 500 or reply.status_code in REFUSED, seen
    if reply.status_code >= 400:
        kind = "anthropic_error" if path.startswith("/v1/messages") else "error"
        assert validate(kind, reply.json()) == [], seen
        assert len(reply.text) < 4000, seen
        assert "Traceback" not in reply.text, seen


@pytest.mark.parametrize("path", BODIES)
def test_the_body_to_be_spoiled_is_right(app: App, path: str) -> None:
    assert app.post(path, json=BODIES[path]).status_code == 200


@pytest.mark.parametrize("path", BODIES)
def test_no_body_makes_the_server_fail(app: App, path: str) -> None:
    @FUZZ
    @given(CHANCE)
    def send(chance: random.Random) -> None:
        text = mutated(BODIES[path], chance)
        content = text.encode("utf-8", "surrogatepass")
        reply = app.post(path, content=content, headers={"content-type": "application/json"})
        assert_honest(path, reply, text)

    send()
    assert app.get("/readyz").status_code == 200
    assert app.get("/healthz").json()["engine"]["running"] == 0


def test_no_odd_value_in_any_field_makes_the_server_fail(app: App) -> None:
    for path, body in BODIES.items():
        for field in body:
            for value in ODD:
                text = json.dumps(body | {field: value})
                content = text.encode("utf-8", "surrogatepass")
                headers = {"content-type": "application/json"}
                assert_honest(path, app.post(path, content=content, headers=headers), text)
    assert app.get("/readyz").status_code == 200


def test_the_published_schema_finds_no_failure(app: App) -> None:
    import schemathesis

    schema = schemathesis.openapi.from_url(f"{app.url}/openapi.json")
    tried = set()
    for result in schema.get_all_operations():
        operation = result.ok()

        @settings(FUZZ, max_examples=15)
        @given(operation.as_strategy())
        def send(case: schemathesis.Case) -> None:
            reply = case.call()
            tried.add(case.path)
            assert reply.status_code < 500 or reply.status_code in REFUSED, case.as_curl_command()

        send()
    assert tried >= set(BODIES) | {"/readyz", "/v1/models"}
    assert app.get("/readyz").status_code == 200


TEMPLATES = [
    b"GET /livez HTTP/1.1\r\nHost: x\r\nAccept: */*\r\n\r\n",
    b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b'Content-Length: 15\r\n\r\n{"prompt": "x"}',
    b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
    b"Content-Type: application/json\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    b"DELETE /v1/requests/%ff%00 HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, x\r\n\r\n",
]
PIECES = [
    *(
        b"\0",
        b"\r",
        b"\n",
        b"\r\n",
        b"\r\n\r\n",
        b" ",
        b"\t",
        b":",
        b"\xff",
        b"\xc3\x28",
        b"%",
        b"%zz",
    ),
    *(b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"Expect: 100-continue\r\n"),
    *(b"Upgrade: websocket\r\nConnection: upgrade\r\n", b"0\r\n\r\n", b"ffffffffffffffffff\r\n"),
    *(b"HTTP/1.1", b"HTTP/0.9", b"-1", b"../", b"//", b"?", b"#", b"http://a/", b"a" * 40_000),
]


def spoiled_bytes(chance: random.Random) -> bytes:
    """A request, or two, with bytes lost, doubled, changed or put in."""
    data = bytearray(chance.choice(TEMPLATES))
    if chance.random() < 0.3:
        data += chance.choice(TEMPLATES)
    for _ in range(chance.choice((1, 1, 2, 5))):
        at = chance.randrange(len(data) + 1)
        kind = chance.randrange(4)
        if kind == 0:
            del data[at : at + chance.choice((1, 5, 50))]
        elif kind == 1:
            data[at:at] = chance.choice(PIECES)
        elif kind == 2:
            data[at:at] = data[at : at + chance.choice((1, 10, 100))]
        elif at < len(data):
            data[at] = chance.randrange(256)
    return bytes(data)


def test_no_malformed_request_makes_the_server_fail(
    app: App, caplog: pytest.LogCaptureFixture
) -> None:
    @settings(FUZZ, max_examples=800)
    @given(CHANCE)
    def send(chance: random.Random) -> None:
        data = spoiled_bytes(chance)
        with connected(app.port) as raw:
            raw.try_send(data)
            raw.socket.settimeout(0.002)
            try:
                answer = raw.socket.recv(65_536)
            except OSError:
                return
        assert not answer.startswith((b"HTTP/1.1 500", b"HTTP/1.1 502")), data
        assert b"text/plain" not in answer.partition(b"\r\n\r\n")[0].lower(), data

    send()
    assert app.get("/readyz").status_code == 200
    assert [r.getMessage() for r in caplog.records if r.levelname == "ERROR"] == []
