"""Every route against every kind of key: what is not opened is closed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from starlette.routing import Route

from llmserve.engine.fake import Script
from llmserve.http.policies import POLICIES, Guide, Policy
from llmserve.settings import AuthSettings
from llmserve.types import Scope
from tests.conformance.validator import assert_openai
from tests.http.harness import App, running

HELLO = [{"role": "user", "content": "Hello"}]
BODIES: dict[str, dict[str, Any]] = {
    "/generate": {"prompt": "Hello"},
    "/generate/stream": {"prompt": "Hello"},
    "/v1/chat/completions": {"messages": HELLO},
    "/v1/completions": {"prompt": "Hello"},
    "/v1/responses": {"input": "Hello"},
    "/v1/messages": {"messages": HELLO, "max_tokens": 5},
    "/v1/messages/count_tokens": {"messages": HELLO},
    "/tokenize": {"prompt": "Hello"},
    "/detokenize": {"tokens": [1]},
    "/v1/embeddings": {"input": "Hello"},
    "/api/show": {"model": "pirate"},
}
PROBES = ("/livez", "/health", "/readyz", "/ready", "/healthz")


@pytest.fixture(scope="module")
def app() -> Iterator[App]:
    script = Script(adapters=("pirate",), tasks=frozenset({"generate", "embed"}))
    with running(script, auth={}) as app:
        yield app


@pytest.fixture(scope="module")
def keys(app: App) -> dict[str, str]:
    """Keys by what is wrong with them, and good ones by their scope."""
    everything = frozenset(Scope)
    now = time.time()
    made = {
        "revoked": app.key("revoked", scopes=everything),
        "expired": app.key("expired", scopes=everything, expires_at=now - 1),
        "other model": app.key("other", scopes=everything, models=frozenset({"pirate"})),
        **{scope.value: app.key(scope.value, scopes=frozenset({scope})) for scope in Scope},
    }
    app.services.store.revoke_key("id-revoked", now)
    app.services.authenticator.refresh()
    return made


def routes(app: App) -> list[tuple[str, str]]:
    """Method and path of every route there is, hidden ones included."""
    found = [
        (method, route.path.replace("{model:path}", "pirate").replace("{request_id}", "none"))
        if "{name:path}" not in route.path
        else (method, route.path.replace("{name:path}", "nothing"))
        for route in app.asgi.routes
        if isinstance(route, Route)
        for method in sorted(route.methods or ())
        if method != "HEAD"
    ]
    assert {path for _, path in found} >= {*BODIES, *PROBES, "/metrics", "/docs", "/openapi.json"}
    return found


def call(app: App, method: str, path: str, key: str | None, how: str = "bearer") -> httpx.Response:
    headers = {}
    if key is not None:
        headers = {"x-api-key": key} if how == "x-api-key" else {"authorization": f"Bearer {key}"}
    body = {"json": BODIES[path]} if path in BODIES else {}
    return app.request(method, path, headers=headers, **body)


def policy_of(path: str) -> Policy:
    if path.startswith("/v1/models/"):
        path = "/v1/models/{model:path}"
    if path.startswith("/v1/requests/"):
        path = "/v1/requests/{request_id}"
    if path.startswith("/models/nothing"):
        path = path.replace("nothing", "{name:path}")
    return POLICIES[path]


def assert_denied(path: str, reply: httpx.Response, status: int) -> None:
    assert reply.status_code == status, (path, reply.text)
    kind = "anthropic_error" if path.startswith("/v1/messages") else "error"
    assert_openai(kind, reply.json())
    assert reply.headers["x-request-id"]
    if status == 401:
        assert reply.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize("how", ["bearer", "x-api-key"])
@pytest.mark.parametrize("kind", [None, "wrong", "revoked", "expired"])
def test_without_a_good_key_everything_but_the_probes_is_closed(
    app: App, keys: dict[str, str], kind: str | None, how: str
) -> None:
    key = None if kind is None else keys.get(kind, "sk-llmserve-guessed")
    for method, path in [*routes(app), ("GET", "/nowhere"), ("POST", "/v1/nowhere")]:
        reply = call(app, method, path, key, how)
        if path in PROBES:
            assert reply.status_code == 200, path
        else:
            assert_denied(path, reply, 401)


@pytest.mark.parametrize("scope", Scope)
def test_a_key_opens_the_routes_of_its_scope_and_no_other(
    app: App, keys: dict[str, str], scope: Scope
) -> None:
    for method, path in routes(app):
        policy = policy_of(path)
        reply = call(app, method, path, keys[scope.value])
        if path in PROBES or not policy.scopes or scope in policy.scopes:
            assert reply.status_code in (200, 404, 422, 503), (path, reply.text)
            if "model" not in path and path not in ("/tensors", "/api/show"):
                assert (reply.status_code == 404) == path.endswith("/none"), path
        else:
            assert_denied(path, reply, 403)


def test_a_key_for_one_model_is_not_for_another(app: App, keys: dict[str, str]) -> None:
    other = keys["other model"]
    for path, body in BODIES.items():
        if path == "/api/show":
            continue  # It looks into files; tests/http/test_models.py has its rules.
        headers = {"authorization": f"Bearer {other}"}
        denied = app.post(path, json=body, headers=headers)
        assert_denied(path, denied, 403)
        if not path.startswith("/v1/messages"):
            assert denied.json()["error"]["code"] == "model_not_allowed"
        allowed = app.post(path, json=body | {"model": "pirate"}, headers=headers)
        assert allowed.status_code == 200, (path, allowed.text)
    listed = call(app, "GET", "/v1/models", other).json()["data"]
    assert [model["id"] for model in listed] == ["pirate"]
    assert call(app, "GET", "/v1/models/demo", other).status_code == 404


def test_a_new_route_without_a_policy_does_not_start() -> None:
    async def handler() -> None:
        """Never reached."""

    with pytest.raises(RuntimeError, match="/v1/new has no policy"):
        Guide([Route("/v1/new", handler)])
    with pytest.raises(RuntimeError, match="no plain route"):
        Guide([object()])  # type: ignore[list-item]


def test_each_opening_is_explicit() -> None:
    closed = AuthSettings()
    opened = {path for path, policy in POLICIES.items() if policy.opened(closed)}
    assert opened == set(PROBES)
    settings = {"open_metrics": True, "open_docs": True, "api_keys": ["right"]}
    with running(auth=settings, ready=False) as app:
        for path in ("/metrics", "/docs", "/openapi.json"):
            assert app.get(path).status_code == 200
        assert app.get("/v1/models").status_code == 401


def test_the_key_in_the_query_is_off_by_default_and_never_shown(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level("DEBUG"), running() as app:
        key = app.key()
        assert app.get("/v1/models", params={"api_key": key}).status_code == 401
    with caplog.at_level("DEBUG"), running(auth={"allow_query_key": True}) as app:
        key = app.key()
        reply = app.post("/generate/stream", params={"api_key": key}, json={"prompt": "x"})
        assert reply.status_code == 200
        assert app.get("/v1/models", params={"api_key": "wrong"}).status_code == 401
        assert app.get("/v1/usage", params={"api_key": key, "x": "1"}).status_code == 400
    ours = [record.getMessage() for record in caplog.records if record.name != "httpx"]
    assert ours
    assert not [line for line in ours if "sk-llmserve" in line or "api_key" in line]


def test_a_forged_host_opens_nothing(app: App, keys: dict[str, str]) -> None:
    for host in ("x/livez?", "127.0.0.1/livez", "/livez"):
        reply = app.get("/v1/models", headers={"host": host})
        assert reply.status_code in (400, 401), host
    for path in ("//livez", "/livez/", "/livez%2f..%2fv1%2fmodels"):
        assert app.get(path).status_code in (401, 404, 307), path


def test_pages_of_others_cannot_use_a_server_without_keys() -> None:
    cors = {"server": {"cors_origins": ["https://mine.example"]}}
    with running(auth={}, **cors) as app:
        for origin, status in (
            ("https://evil.example", 403),
            ("null", 403),
            ("https://mine.example", 200),
            ("http://localhost:3000", 200),
            ("http://127.0.0.1:9", 200),
            ("http://[::1]:9", 200),
        ):
            reply = app.post("/generate", json={"prompt": "x"}, headers={"origin": origin})
            assert reply.status_code == status, origin
        assert app.get("/livez", headers={"origin": "https://evil.example"}).is_success
    with running(auth={}) as app:
        key = app.key()
        headers = {"origin": "https://evil.example", "authorization": f"Bearer {key}"}
        assert app.post("/generate", json={"prompt": "x"}, headers=headers).is_success


def test_headers_that_bind_browsers(app: App) -> None:
    reply = app.get("/v1/models")
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["referrer-policy"] == "no-referrer"
    assert reply.headers["cache-control"] == "no-store"
    assert "frame-ancestors 'none'" in reply.headers["content-security-policy"]


@pytest.mark.parametrize("tail", ["%0a", "%0d", "%0a%0a", "%09", "%e2%80%a8"])
def test_a_line_break_after_a_path_opens_nothing(app: App, keys: dict[str, str], tail: str) -> None:
    for scope in Scope:
        for method, path in routes(app):
            if path in PROBES:
                continue
            reply = call(app, method, path + tail, keys[scope.value])
            assert reply.status_code == 404, (path, reply.text)
