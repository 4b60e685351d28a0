"""What one application is made of, wired once in ``app`` and never changed."""

from __future__ import annotations

from dataclasses import dataclass

from llmserve.engine.supervisor import Supervisor
from llmserve.gateway.auth import Keys
from llmserve.gateway.gateway import Gateway
from llmserve.observability.metrics import Metrics
from llmserve.settings import Settings


@dataclass(frozen=True, slots=True)
class Services:
    """The parts of a running server. ``started_at`` is Unix seconds."""

    settings: Settings
    supervisor: Supervisor
    gateway: Gateway
    keys: Keys
    metrics: Metrics
    started_at: int
