"""Who may call which route. Every route stands here; one that does not is never served.

As soon as there are keys, a path is denied to whoever brings none. Nothing is open by
default but the health probes: a probe has no key to give.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from re import Pattern

from starlette.routing import BaseRoute, Route

from llmserve.errors import NotFound
from llmserve.settings import AuthSettings
from llmserve.types import Scope


@dataclass(frozen=True, slots=True)
class Policy:
    """Any one of ``scopes`` opens the route to a key (none: every valid key does);
    ``opened`` tells whether the settings open it to everybody."""

    scopes: frozenset[Scope] = frozenset()
    opened: Callable[[AuthSettings], bool] = lambda _: False


_PROBE = Policy(opened=lambda _: True)
_METRICS = Policy(frozenset({Scope.METRICS}), opened=lambda auth: auth.open_metrics)
_DOCS = Policy(opened=lambda auth: auth.open_docs)
_INFER = Policy(frozenset({Scope.INFER}))
_OWN = Policy(frozenset({Scope.INFER, Scope.ADMIN}))
"""A caller sees what is its own, an administrator sees everybody's."""

POLICIES: dict[str, Policy] = {
    **dict.fromkeys(("/livez", "/health", "/readyz", "/ready", "/healthz"), _PROBE),
    "/metrics": _METRICS,
    **dict.fromkeys(("/docs", "/docs/oauth2-redirect", "/openapi.json"), _DOCS),
    **dict.fromkeys(("/generate", "/generate/stream"), _INFER),
    **dict.fromkeys(("/v1/chat/completions", "/v1/completions", "/v1/responses"), _INFER),
    **dict.fromkeys(("/v1/messages", "/v1/messages/count_tokens", "/v1/embeddings"), _INFER),
    **dict.fromkeys(("/tokenize", "/detokenize"), _INFER),
    **dict.fromkeys(("/v1/models", "/v1/models/{model:path}"), _OWN),
    **dict.fromkeys(("/models", "/models/{name:path}", "/model", "/tensors", "/api/show"), _OWN),
    **dict.fromkeys(
        tuple(f"/models/{{name:path}}/{part}" for part in ("tensors", "metadata", "estimate")),
        _OWN,
    ),
    **dict.fromkeys(("/v1/requests", "/v1/requests/{request_id}", "/v1/usage"), _OWN),
}
"""By the path of the route, as it is written where the route is made."""

UNKNOWN = Policy()
"""A path that does not exist is told only to those with a key."""


class Guide:
    """Finds the policy of a path. Made from the application's own routes, in their order,
    and asked only about paths that both read alike: a path with a control character (a
    line break at its end, which a route's ``$`` does not see) is nobody's."""

    def __init__(self, routes: Iterable[BaseRoute]) -> None:
        self._exact: dict[str, Policy] = {}
        self._patterns: list[tuple[Pattern[str], Policy]] = []
        for route in routes:
            if not isinstance(route, Route):
                raise RuntimeError(f"{route!r} is no plain route: it needs a policy of its own")
            policy = POLICIES.get(route.path)
            if policy is None:
                raise RuntimeError(f"the route {route.path} has no policy in http/policies.py")
            if route.param_convertors:
                self._patterns.append((route.path_regex, policy))
            else:
                self._exact[route.path] = policy

    def policy(self, path: str) -> Policy:
        """The policy of a request's path (``scope["path"]``, never a header's idea of it).
        Raises ``NotFound`` for a path that no route can mean."""
        found = self._exact.get(path)
        if found is not None:
            return found
        if not path.isprintable():
            raise NotFound(f"There is no {path[:200]!r} here.")
        return next((policy for regex, policy in self._patterns if regex.match(path)), UNKNOWN)
