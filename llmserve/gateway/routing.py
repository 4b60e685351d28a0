"""From the model name in a request to what serves it."""

from __future__ import annotations

from dataclasses import dataclass

from llmserve.engine.protocol import Engine
from llmserve.errors import Forbidden, ModelNotFound
from llmserve.settings import ModelSettings
from llmserve.types import ANONYMOUS, Caller


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

    def route(
        self, name: str | None, base_url: str, engine: Engine, caller: Caller = ANONYMOUS
    ) -> Target:
        """The target for a requested name; no name means the served model.

        ``base_url`` is the URL the client reached us at: some clients that were given no
        model send it as the name. Raises ``ModelNotFound``, and ``Forbidden`` when the
        caller's key is not for that model.
        """
        target = self._resolve(name, base_url, engine, caller)
        if not self.allows(caller, target):
            raise Forbidden(
                f"This API key is not for the model {target.model!r}.",
                param="model",
                code="model_not_allowed",
            )
        return target

    def allows(self, caller: Caller, target: Target) -> bool:
        """Whether the caller may use a target, by any of its names."""
        if caller.models is None:
            return True
        names = {target.model} if target.adapter else {target.model, *self.names}
        return not names.isdisjoint(caller.models)

    def _resolve(
        self, name: str | None, base_url: str, engine: Engine, caller: Caller = ANONYMOUS
    ) -> Target:
        if name is None or name in self.names or name in self._defaults:
            return Target(self.names[0], self._version)
        if name in engine.info.adapters:
            return Target(name, self._version, adapter=name)
        if base_url and name.rstrip("/").removesuffix("/v1") == base_url.rstrip("/"):
            return Target(self.names[0], self._version)
        raise ModelNotFound(name, self.all_names(engine, caller))

    def all_names(self, engine: Engine, caller: Caller = ANONYMOUS) -> list[str]:
        """Every name this caller may ask for, the default ones aside."""
        names = [*self.names, *engine.info.adapters]
        if caller.models is None:
            return names
        return [name for name in names if self.allows(caller, self._resolve(name, "", engine))]
