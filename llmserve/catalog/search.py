"""Where a server looks for models, from its settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmserve.provision.hubcache import default_hub_cache
from llmserve.settings import Settings


def search_of(settings: Settings) -> dict[str, Any]:
    """Arguments of ``places.find_places``."""
    adapters = settings.engine.get("lora_modules")
    return {
        "source": settings.model.source,
        "revision": settings.model.revision,
        "folders": list(settings.catalog.folders),
        "hub_cache": str(default_hub_cache()),
        "list_hub": settings.catalog.hub_cache,
        "adapters": {
            str(each["name"]): str(each["path"])
            for each in (adapters if isinstance(adapters, list) else ())
            if isinstance(each, Mapping) and {"name", "path"} <= each.keys()
        },
    }
