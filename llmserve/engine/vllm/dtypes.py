"""The data type of the weights on a CPU, where vLLM's choice would be a slow one.

vLLM takes the type of the model's file, mostly bfloat16. A CPU without AVX-512 has no
arithmetic of 16 bits: oneDNN makes every product of a matrix by a loop then, and a model of
135 million weights gives 16 tokens/s at 64 streams instead of 98
(``docs/decisions/0006-engine-defaults.md``).
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import psutil
import torch
from vllm.platforms import CpuArchEnum, current_platform

log = logging.getLogger(__name__)


def halves_are_slow() -> bool:
    """Whether this engine runs on an x86 CPU that cannot calculate with 16 bits."""
    return (
        current_platform.is_cpu()
        and current_platform.get_cpu_architecture() == CpuArchEnum.X86
        and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def fitting_dtype(engine_args: Any) -> str:
    """The ``dtype`` for these ``AsyncEngineArgs``: float32 where vLLM is free to choose
    (``auto``), 16 bits are slow, the weights are not quantized (whose kernels take no other
    type than theirs), and there is room for twice of what the files have."""
    asked: str = engine_args.dtype
    if asked != "auto" or not halves_are_slow():
        return asked
    config = engine_args.create_model_config()
    if config.quantization:
        return asked
    if not _has_room(Path(config.model)):
        log.warning("this CPU has no arithmetic of 16 bits, and no memory for float32: slow")
        return asked
    log.info("weights and cache are float32: this CPU has no arithmetic of 16 bits")
    return "float32"


def _has_room(folder: Path) -> bool:
    """Whether the weights in ``folder`` take no more than half of the free memory in float32.
    What is not here yet has no size, and room."""
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return 2 * size <= psutil.virtual_memory().available / 2
