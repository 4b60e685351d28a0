"""The data type of the weights on a CPU, where vLLM's choice would be a slow one.

vLLM takes the type of the model's file, mostly bfloat16. An x86 CPU without AVX-512 has no
arithmetic of 16 bits: oneDNN makes every product of a matrix by a loop then, and a model of
135 million weights gives 16 tokens/s at 64 streams instead of 98
(``docs/decisions/0006-engine-defaults.md``).
"""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import torch
from vllm import envs
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.platforms import CpuArchEnum, current_platform

log = logging.getLogger(__name__)

_BYTES = 4


def halves_are_slow() -> bool:
    """Whether this engine runs on an x86 CPU that cannot calculate with 16 bits; vLLM
    chooses its kernels by the same question."""
    return (
        current_platform.is_cpu()
        and current_platform.get_cpu_architecture() == CpuArchEnum.X86
        and not torch.cpu._is_avx512_supported()
    )


class FittingArgs(AsyncEngineArgs):  # type: ignore[misc]  # vLLM is untyped here
    """vLLM's arguments, with another ``dtype`` where vLLM is free to choose (``auto``) and
    16 bits are slow: float32, if the weights are not quantized, whose kernels take no other
    type than theirs, and if weights and one sequence have room in it."""

    dtype: str

    def create_model_config(self) -> Any:
        """As vLLM's, which reads the model's files in the course of it."""
        config = super().create_model_config()
        plain = config.quantization is None and self.speculative_config is None
        if self.dtype != "auto" or not halves_are_slow() or not plain:
            return config
        if not (_weights_fit(Path(config.model)) and self._sequence_fits(config)):
            log.warning(
                "slow: this CPU has no arithmetic of 16 bits, and there is no room for float32 "
                "(memory for the weights, runtime.cpu_kv_cache_gib for one sequence)"
            )
            return config
        log.info("weights and cache are float32: this CPU has no arithmetic of 16 bits")
        self.dtype = "float32"
        return super().create_model_config()

    def _sequence_fits(self, config: Any) -> bool:
        """Whether the cache holds the longest sequence, without which vLLM does not start.
        What is not kept for every token and layer (windows, states) is taken for it."""
        if config.is_attention_free:
            return True
        told = envs.VLLM_CPU_KVCACHE_SPACE
        space = told * 2**30 if told else self.kv_cache_memory_bytes
        heads, width = config.get_total_num_kv_heads(), config.get_head_size()
        token = 2 * heads * width * config.get_total_num_hidden_layers() * _BYTES
        return not space or config.max_model_len * token <= space


def _weights_fit(folder: Path) -> bool:
    """Whether the weights in ``folder``, taken for 16 bits wide, are no more than half of
    the memory in float32. What is not here yet has no size, and room."""
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return _BYTES // 2 * size <= _memory() / 2


def _memory() -> int:
    """Bytes that this machine has, or this container."""
    total = int(psutil.virtual_memory().total)
    with suppress(OSError, ValueError):  # "max" is no number.
        return min(total, int(Path("/sys/fs/cgroup/memory.max").read_text("ascii")))
    return total
