"""From the model name in a request to what serves it."""

from __future__ import annotations

from dataclasses import dataclass

from llmserve.engine.protocol import Engine
from llmserve.errors import ModelNotFound
from llmserve.settings import ModelSettings


@dataclass(frozen=True, slots=True)
class Target:
    """What answers a request: ``model`` is the name that replies carry."""

    model: str
    version: str
    adapter: str | None = None


class Router:
    """One model with its names, and the adapters of its engine."""

    def __init__(self, settings: ModelSettings) -> None:
        self.names = settings.names
        self._defaults = frozenset(settings.default_names)
        self._version = settings.version

    def route(self, name: str | None, base_url: str, engine: Engine) -> Target:
        """The target for a requested name; no name means the served model.

        ``base_url`` is the URL the client reached us at: some clients that were given no
        model send it as the name. Raises ``ModelNotFound``.
        """
        if name is None or name in self.names or name in self._defaults:
            return Target(self.names[0], self._version)
        if name in engine.info.adapters:
            return Target(name, self._version, adapter=name)
        if base_url and name.rstrip("/").removesuffix("/v1") == base_url.rstrip("/"):
            return Target(self.names[0], self._version)
        raise ModelNotFound(name, self.all_names(engine))

    def all_names(self, engine: Engine) -> list[str]:
        """Every name a client may ask for, the default ones aside."""
        return [*self.names, *engine.info.adapters]
