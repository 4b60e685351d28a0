"""Serving a GGUF file as it is, on CUDA, through vLLM's plugin for it.

Outside facts (vllm-gguf-plugin 0.0.5, its README and ``quantization/utils.py``): it needs
CUDA or ROCm, reads a single file, and has kernels for the types below. Its own advice is to
take tokenizer and configuration from elsewhere: they come from our conversion, which checks
them against the file, without the weights.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

PLUGIN = "vllm-gguf-plugin"
TYPES = frozenset({"F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q8_1"})
TYPES |= {"Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ1_M", "IQ1_S", "IQ2_XXS", "IQ2_XS"}
TYPES |= {"IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS", "IQ4_NL"}


def why_not(file: Path) -> str | None:
    """Why this file is converted rather than served as it is; ``None`` when it need not be.
    Raises ``ModelFileError``."""
    from llmserve.modelfile import describe
    from llmserve.provision.hardware import look

    try:
        metadata.version(PLUGIN)
    except metadata.PackageNotFoundError:
        return f"{PLUGIN} is not installed"
    if not look(file.parent).gpus:
        return "there is no NVIDIA GPU here"
    model = describe(file)
    if len(model.files) > 1:
        return "the plugin reads single files only"
    if model.experts is not None:
        return "it is a mixture of experts"
    unknown = sorted(set(model.quantization.mix) - TYPES)
    return f"the plugin has no kernels for {', '.join(unknown)}" if unknown else None


def engine_defaults(folder: Path) -> dict[str, Any]:
    """Engine arguments for such a file; ``folder`` holds its tokenizer and configuration."""
    return {"tokenizer": str(folder), "hf_config_path": str(folder)}
