"""What vLLM itself says of the models whose folders are given: run as a program, it loads
one after the other, and prints a line of JSON for each. Random ones are written before,
into the folder that comes second: torch is imported once.

Weights are counted when they have been loaded and before the CPU backend packs them anew.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from tests.e2e.random_models import write_random_models

os.environ.update(
    HF_HUB_OFFLINE="1",
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_LOGGING_LEVEL="ERROR",
    VLLM_NO_USAGE_STATS="1",
    DO_NOT_TRACK="1",
)


def main() -> None:
    from vllm import LLM
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory
    from vllm.model_executor.model_loader import base_loader
    from vllm.v1.core.kv_cache_utils import get_max_concurrency_for_kv_cache_config

    process, loaded = base_loader.process_weights_after_loading, [0]

    def counting(model: Any, *args: Any, **kwargs: Any) -> Any:
        loaded[0] = sum(each.numel() * each.element_size() for each in model.parameters())
        return process(model, *args, **kwargs)

    base_loader.process_weights_after_loading = counting
    write_random_models(Path(sys.argv[2]))
    for path, options in json.loads(sys.argv[1]):
        # A small step: vLLM tries the largest one out at each start.
        llm = LLM(model=path, enforce_eager=True, max_num_batched_tokens=1024, **options)
        config = llm.llm_engine.vllm_config
        core = llm.llm_engine.engine_core.engine_core
        cache = core.scheduler.kv_cache_config
        groups = [(group.kv_cache_spec, len(group.layer_names)) for group in cache.kv_cache_groups]
        # All groups take their blocks from one pool.
        block = max((spec.page_size_bytes * layers for spec, layers in groups), default=0)
        figures = {
            "weights": loaded[0],
            "kv_bytes_per_token": sum(
                layers * spec.page_size_bytes / spec.block_size for spec, layers in groups
            ),
            "cache_bytes": cache.num_blocks * block,
            "block_tokens": config.cache_config.block_size,
            "blocks": config.cache_config.num_gpu_blocks,
            "in_flight_tokens": config.max_in_flight_tokens,
            "context": config.model_config.max_model_len,
            "sequences": groups and get_max_concurrency_for_kv_cache_config(config, cache),
        }
        print(f"FIGURES {json.dumps(figures)}", flush=True)  # noqa: T201
        llm.llm_engine.engine_core.shutdown()
        del llm, core
        cleanup_dist_env_and_memory()


if __name__ == "__main__":
    main()
