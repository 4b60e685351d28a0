"""vLLM behind the engine seam: the only place of the project that imports vLLM.

``engine`` is the seam's implementation; ``environment`` and ``args`` prepare what vLLM
is started with; ``core`` owns the running ``AsyncLLM``; ``native`` and ``face`` are the
two faces; ``direct`` is the short way of plain requests past vLLM's serving classes;
``conform`` and ``tools`` mend what vLLM's OpenAI replies lack; ``errors`` is the one table
from vLLM's errors to ours. Importing this package does not import vLLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmserve.engine.vllm.engine import VllmEngine
    from llmserve.settings import Settings


def build_engine(
    settings: Settings, model: str, defaults: Mapping[str, Any] | None = None
) -> VllmEngine:
    """An unstarted engine for ``model``, a local folder. ``defaults`` are engine
    arguments that suit this model; the settings come first."""
    from llmserve.engine.vllm.engine import VllmEngine

    return VllmEngine(settings, model, defaults or {})
