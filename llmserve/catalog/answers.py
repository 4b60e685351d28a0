"""A question about one model → an answer as JSON. Runs where the files are read."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmserve.catalog.ollama import show
from llmserve.modelfile import ModelFile, describe, identity, query
from llmserve.modelfile.estimate import Ask, estimate
from llmserve.modelfile.memory import Dtype
from llmserve.modelfile.views import estimate_view, metadata, summary, tensor_page

_KEPT_MODELS = 16
_KEPT_TENSORS = 200_000


class Described:
    """Descriptions of the models that were asked for last, while their files stay as they
    are. Bounded by models and by tensors."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[str, ModelFile]] = OrderedDict()

    def get(self, path: str, root: str) -> ModelFile:
        """Raises ``ModelFileError``."""
        now = identity(path)
        known = self._kept.pop(path, None)
        if known is None or known[0] != now:
            known = (now, describe(path, root=Path(root)))
        self._kept[path] = known
        while len(self._kept) > 1 and (
            len(self._kept) > _KEPT_MODELS or self._tensors() > _KEPT_TENSORS
        ):
            self._kept.popitem(last=False)
        return known[1]

    def _tensors(self) -> int:
        return sum(len(model.tensors) for _, model in self._kept.values())


def answer(model: ModelFile, question: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """``question`` is a key of ``QUESTIONS``; ``args`` were checked by the caller."""
    return QUESTIONS[question](model, args)


def _summary(model: ModelFile, _: Mapping[str, Any]) -> dict[str, Any]:
    return summary(model)


def _tensors(model: ModelFile, args: Mapping[str, Any]) -> dict[str, Any]:
    return tensor_page(query(model.tensors, **args))


def _metadata(model: ModelFile, _: Mapping[str, Any]) -> dict[str, Any]:
    return {"metadata": metadata(model)}


def _estimate(model: ModelFile, args: Mapping[str, Any]) -> dict[str, Any]:
    machine = None
    if args.get("memory_bytes") is None:
        machine = this_machine()
        args = {**args, "gpu": machine["gpu"], "memory_bytes": machine["memory_bytes"]}
    ask = Ask(**{**args, "dtype": Dtype(args.get("dtype", Dtype.BF16))})
    if not ask.gpu:
        ask = replace(ask, tensor_parallel=1)
    return {"machine": machine, **estimate_view(estimate(model, ask))}


def this_machine() -> dict[str, Any]:
    """Its GPUs, or else its memory: ``memory_bytes`` of each device."""
    from llmserve.provision.hardware import look

    found = look(Path("/"))
    if found.gpus:
        least = min(gpu.memory_bytes for gpu in found.gpus)
        names = ", ".join(sorted({gpu.name for gpu in found.gpus}))
        return {"gpu": True, "name": names, "devices": len(found.gpus), "memory_bytes": least}
    return {"gpu": False, "name": found.cpu, "devices": 1, "memory_bytes": found.memory_bytes}


QUESTIONS: Mapping[str, Callable[[ModelFile, Mapping[str, Any]], dict[str, Any]]] = {
    "summary": _summary,
    "tensors": _tensors,
    "metadata": _metadata,
    "estimate": _estimate,
    "show": show,
}
