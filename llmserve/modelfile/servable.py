"""What cannot be served, known from the headers alone: before a download or a load."""

from __future__ import annotations

from collections.abc import Iterable

from llmserve.modelfile.types import Format, ModelFile, Problem, ProblemKind

_DAMAGE = (ProblemKind.TRUNCATED, ProblemKind.OVERLAP, ProblemKind.MISSING, ProblemKind.SIZE)


def refusal(model: ModelFile) -> str | None:
    """Why this cannot be served, as one sentence; ``None`` where nothing speaks against
    it. That the engine knows the architecture is not said with that."""
    if model.format is Format.APR:
        return (
            "vLLM cannot load APR files. Export it with aprender"
            " (apr export --format safetensors), and serve the folder."
        )
    if model.kind == "adapter":
        base = model.adapter.base_model if model.adapter else None
        named = f" ({base})" if base else ""
        return f"It is an adapter: serve its base model{named} with engine.enable_lora."
    if model.kind != "model":
        return f"It is a {model.kind}, not a whole model."
    damage = _damage(model.problems)
    if damage is not None:
        return f"Its files are damaged or not complete. {damage.where}: {damage.detail}"
    if not model.tensors:
        return "It holds no tensors."
    if model.format is Format.SAFETENSORS and model.family is None:
        return "There is no config.json beside the weights: give the folder of the whole model."
    return None


def _damage(problems: Iterable[Problem]) -> Problem | None:
    return next((problem for problem in problems if problem.kind in _DAMAGE), None)
