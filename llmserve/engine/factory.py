"""From settings to an engine: obtain the model, then build what serves it."""

from __future__ import annotations

import asyncio
import logging
from importlib.util import find_spec
from typing import TYPE_CHECKING

from llmserve.engine.protocol import Engine, Report
from llmserve.engine.supervisor import MakeEngine
from llmserve.errors import SetupError
from llmserve.settings import Settings
from llmserve.types import Stage

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from llmserve.provision.resolve import ResolvedModel


def engine_maker(settings: Settings) -> MakeEngine:
    """What the supervisor calls for each start of an engine."""

    async def make(report: Report) -> Engine:
        if settings.runtime.engine == "fake":
            from llmserve.engine.fake import FakeEngine

            return FakeEngine()
        report(Stage.INSTALLING, None)
        model = await asyncio.to_thread(_obtain, settings, report)
        for note in model.notes:
            log.info("%s", note)
        from llmserve.engine.vllm import build_engine

        return build_engine(settings, model.path, model.engine_defaults)

    return make


def _obtain(settings: Settings, report: Report) -> ResolvedModel:
    """The model, downloaded and converted where that is needed. Raises ``SetupError``."""
    from llmserve.provision.progress import terminal_progress
    from llmserve.provision.resolve import resolve_model

    if find_spec("vllm") is None:
        raise SetupError(
            "vLLM is not installed here. Run 'make setup' in a clone of llmserve, or see "
            "'llmserve doctor' for what fits this machine."
        )
    with terminal_progress() as show:

        def notify(text: str, fraction: float | None) -> None:
            show(text, fraction)
            report(Stage.INSTALLING, fraction)

        return resolve_model(
            settings.model.source,
            settings.model.revision,
            notify=notify,
            native_gguf=settings.runtime.device != "cpu",
        )
