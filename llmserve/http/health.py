"""Liveness, readiness and metrics. Live is not ready."""

from __future__ import annotations

import time

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from llmserve import __version__
from llmserve.errors import NotFound
from llmserve.http.context import services
from llmserve.http.envelopes import json_response
from llmserve.observability.metrics import State
from llmserve.services import Services

router = APIRouter(tags=["health"])

PROBES = ("/livez", "/health", "/readyz", "/ready", "/healthz")
"""Open to everybody, and answered when much else is refused."""

_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@router.head("/health", include_in_schema=False)
@router.get("/health", include_in_schema=False)
@router.head("/livez", include_in_schema=False)
@router.get("/livez", summary="200 while the process answers")
async def livez() -> Response:
    return json_response({"status": "live"})


@router.head("/ready", include_in_schema=False)
@router.get("/ready", include_in_schema=False)
@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", summary="200 once a token has been generated, else 503 and why not")
async def readyz(request: Request) -> Response:
    wired = services(request)
    ready = _ready(wired)
    headers = {} if ready else {"retry-after": "5"}
    return json_response(_readiness(wired), status=200 if ready else 503, headers=headers)


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz", summary="The state of the server in one object")
async def healthz(request: Request) -> Response:
    wired = services(request)
    engine = wired.supervisor.engine() if _ready(wired) else None
    load = engine.load() if engine else None
    return json_response(
        {
            "status": "live",
            "version": __version__,
            "uptime_s": round(time.time() - wired.started_at, 3),
            "model": wired.gateway.router.names[0],
            "requests_in_flight": wired.gateway.admission.in_flight,
            "engine_restarts": wired.supervisor.status.restarts,
            "readiness": _readiness(wired),
            "engine": load
            and {
                "running": load.running,
                "waiting": load.waiting,
                "kv_cache_usage": load.kv_cache_usage,
            },
        }
    )


@router.get("/metrics", summary="Prometheus metrics: llmserve's and vLLM's")
async def metrics(request: Request) -> Response:
    wired = services(request)
    if not wired.settings.metrics.enabled:
        raise NotFound("Metrics are switched off (metrics.enabled).")
    state = State(
        model=wired.gateway.router.names[0],
        ready=_ready(wired),
        draining=wired.gateway.admission.draining,
        running=wired.gateway.admission.running,
        waiting=wired.gateway.admission.waiting,
        waiting_prompt_tokens=wired.gateway.admission.waiting_prompt_tokens,
        restarts=wired.supervisor.status.restarts,
        cache_hits=wired.gateway.answers.cache.hits,
        cache_misses=wired.gateway.answers.cache.misses,
        cache_bytes=wired.gateway.answers.cache.bytes,
    )
    text = await run_in_threadpool(wired.metrics.render, state)
    return Response(text, headers={"content-type": _CONTENT_TYPE})


def _ready(wired: Services) -> bool:
    return _obstacle(wired) is None


def _obstacle(wired: Services) -> tuple[str, str] | None:
    """The stage that the server is in and the reason why it cannot take requests."""
    admission, status = wired.gateway.admission, wired.supervisor.status
    if admission.draining or admission.leaving:
        return "draining", "The server is shutting down."
    if not wired.supervisor.ready:
        return status.stage.value, status.reason or f"The engine is {status.stage.value}."
    if wired.usage.failing is not None:
        return "state", f"Usage cannot be written: {wired.usage.failing}"
    return None


def _readiness(wired: Services) -> dict[str, object]:
    now = time.monotonic()
    status, obstacle = wired.supervisor.status, _obstacle(wired)
    spent = wired.supervisor.timeline.seconds(now)
    body: dict[str, object] = {
        "status": "ready" if obstacle is None else "not ready",
        "stage": status.stage.value if obstacle is None else obstacle[0],
        "seconds_in_stage": round(now - status.since, 1),
        "start_seconds": {stage.value: round(took, 2) for stage, took in spent.items()},
    }
    if obstacle is not None:
        body |= {"progress": round(status.start_progress, 3), "reason": obstacle[1]}
    return body
