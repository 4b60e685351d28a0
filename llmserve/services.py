"""What one application is made of, wired once in ``app`` and never changed."""

from __future__ import annotations

from dataclasses import dataclass

from llmserve.catalog.catalog import Catalog
from llmserve.engine.supervisor import Supervisor
from llmserve.gateway.gateway import Gateway
from llmserve.observability.metrics import Metrics
from llmserve.settings import Settings
from llmserve.state import Authenticator, Store, UsageWriter, Windows


@dataclass(frozen=True, slots=True)
class Services:
    """The parts of a running server. ``started_at`` is Unix seconds."""

    settings: Settings
    supervisor: Supervisor
    gateway: Gateway
    store: Store
    authenticator: Authenticator
    usage: UsageWriter
    windows: Windows
    metrics: Metrics
    catalog: Catalog
    started_at: int
