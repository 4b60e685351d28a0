"""``/v1/requests``: what is under way, and the end of it. ``/v1/usage``: what was used."""

from __future__ import annotations

import datetime
from typing import Any

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from llmserve.errors import Cancelled, InvalidRequest, NotFound
from llmserve.gateway.running import Job
from llmserve.http.context import caller, services
from llmserve.http.envelopes import json_response
from llmserve.types import Scope

router = APIRouter(tags=["control"])

_DAYS = 31
_MAX_DAYS = 366
_FIRST_DAY = datetime.date(2000, 1, 1)


@router.get("/v1/requests", summary="Your requests under way; all of them for administrators")
async def list_requests(request: Request) -> Response:
    jobs = services(request).gateway.running.visible_to(caller(request))
    return json_response({"object": "list", "data": [_job_json(job) for job in jobs]})


@router.delete("/v1/requests/{request_id}", summary="Cancel a request")
async def cancel_request(request: Request, request_id: str) -> Response:
    running = services(request).gateway.running
    jobs = [job for job in running.visible_to(caller(request)) if job.entry.id == request_id]
    if not jobs:
        raise NotFound(f"No request of yours with the id {request_id[:64]!r} is under way.")
    running.stop(jobs, Cancelled)
    return json_response({"id": request_id, "object": "request", "cancelled": True})


@router.get("/v1/usage", summary="Requests and tokens by day, key, model and outcome")
async def usage(request: Request) -> Response:
    wired, who = services(request), caller(request)
    first, last, key = _query(request)
    if Scope.ADMIN not in who.scopes:
        if key not in (None, who.id):
            raise NotFound(f"You have no key {key!r}.")
        key = who.id
    rows = await run_in_threadpool(wired.store.usage, first, last, key)
    return json_response({"object": "list", "from": first, "to": last, "data": rows})


def _job_json(job: Job) -> dict[str, Any]:
    entry = job.entry
    return {
        "id": entry.id,
        "object": "request",
        "key": entry.caller.name,
        "route": entry.route,
        "model": entry.model,
        "stage": job.stage,
        "age_s": round(job.age, 3),
        "prompt_tokens": entry.meter.prompt_tokens,
        "completion_tokens": entry.meter.tokens_so_far,
    }


def _query(request: Request) -> tuple[str, str, str | None]:
    """``from``, ``to`` (days, UTC) and ``key``. Raises ``InvalidRequest``."""
    given = dict(request.query_params)
    for name in given:
        if name not in ("from", "to", "key"):
            raise InvalidRequest(f"{name[:40]!r} is not from, to or key.", param=name[:40])
    last = _day(given, "to") or datetime.datetime.now(datetime.UTC).date()
    first = _day(given, "from") or max(_FIRST_DAY, last - datetime.timedelta(days=_DAYS - 1))
    if not 0 <= (last - first).days < _MAX_DAYS:
        raise InvalidRequest(
            f"from is {first} and to is {last}; at most {_MAX_DAYS} days, in order, are allowed.",
            param="from",
        )
    return first.isoformat(), last.isoformat(), given.get("key")


def _day(given: dict[str, str], name: str) -> datetime.date | None:
    text = given.get(name)
    if text is None:
        return None
    try:
        day = datetime.date.fromisoformat(text)
        if day < _FIRST_DAY:
            raise ValueError
        return day
    except ValueError:
        raise InvalidRequest(
            f"{name} is {text[:40]!r}; it must be a day such as 2026-11-21.", param=name
        ) from None
