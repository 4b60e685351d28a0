"""What handlers need of a request and of the application, without untyped look-ups."""

from __future__ import annotations

from typing import cast

from starlette.requests import Request
from starlette.types import Scope

from llmserve.gateway.entry import Entry
from llmserve.services import Services
from llmserve.types import ANONYMOUS, Caller


def services(request: Request) -> Services:
    """What is wired in this application."""
    return cast(Services, request.app.state.services)


def entry(request: Request) -> Entry:
    """The account of this request, opened by ``middleware.Accounting``."""
    return cast(Entry, request.state.entry)


def identify(scope: Scope, caller: Caller) -> None:
    """Note who sends this request: in its account, if it has one."""
    state = scope["state"]
    if "entry" in state:
        state["entry"].caller = caller
    else:
        state["caller"] = caller


def caller(request: Request) -> Caller:
    """Who sends this request."""
    state = request.scope["state"]
    if "entry" in state:
        return cast(Entry, state["entry"]).caller
    return cast(Caller, state.get("caller", ANONYMOUS))


def header(scope: Scope, name: bytes) -> str | None:
    """The first header of that name (in lower case). Starlette's mapping makes an error and
    catches it for each one that is missing, and most are."""
    for given, value in scope["headers"]:
        if given == name:
            return str(value, "latin-1")
    return None


def base_url(request: Request) -> str:
    """``scheme://host[:port]`` as the client sees this server."""
    return f"{request.scope['scheme']}://{header(request.scope, b'host') or ''}"
