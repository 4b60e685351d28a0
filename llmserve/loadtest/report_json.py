"""The run as JSON. Figures have the names that ``vllm bench serve`` gives them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from llmserve import __version__
from llmserve.loadtest.figures import Record
from llmserve.loadtest.results import Result, Sample
from llmserve.loadtest.tables import NAMES

FORMAT = 1
"""Goes up when a field changes its meaning or goes away."""


def as_json(result: Result, *, details: bool) -> dict[str, Any]:
    """Everything but secrets and texts. ``details``: with one entry for each request."""
    plan, load, workload = result.plan, result.plan.load, result.plan.workload
    return {
        "format": FORMAT,
        "tool": f"llmserve bench {__version__}",
        "servers": {
            name: {"url": url, "model": model}
            for name, url, model in zip(NAMES, result.urls, result.models, strict=False)
        },
        "endpoint": plan.endpoint,
        "load": asdict(load),
        "workload": {
            "prompts": None if workload.file else str(workload.prompts),
            "answers": str(workload.answers) if workload.answers else None,
            "prefix_tokens": workload.prefix_tokens,
            "prefix_share": workload.prefix_share,
            "prefix_groups": workload.prefix_groups,
            "file": str(workload.file) if workload.file else None,
        },
        "body": dict(plan.body),
        "seed": plan.seed,
        "rounds": plan.rounds,
        "warmup": plan.warmup,
        "timeout_s": plan.timeout,
        "objectives": {each.metric: each.seconds * 1000 for each in plan.objectives},
        "require": plan.require,
        "missed_levels": result.missed(),
        "calibration": asdict(result.scale),
        "seconds": result.seconds,
        "warnings": result.warnings(),
        "steps": [_step(result, level) for level in load.levels],
        "samples": [_sample(each, details=details) for each in result.samples],
    }


def _step(result: Result, level: float) -> dict[str, Any]:
    return {
        "level": level,
        "medians": {
            NAMES[which]: result.medians(which, level) for which in range(len(result.urls))
        },
        "ratios": {name: asdict(ratio) for name, ratio in result.ratios(level).items()},
    }


def _sample(sample: Sample, *, details: bool) -> dict[str, Any]:
    found: dict[str, Any] = {
        "server": NAMES[sample.target],
        "level": sample.level,
        "round": sample.round,
        "figures": sample.figures.flat(),
        "failures": dict(sample.figures.failures),
        "client": asdict(sample.cost),
        "warnings": list(sample.warnings.values()),
    }
    if details:
        found["requests"] = [_request(each, sample.begin) for each in sample.records]
    return found


def _request(record: Record, begin: float) -> dict[str, Any]:
    found: dict[str, Any] = {
        "index": record.index,
        "due_s": record.due - begin,
        "sent_s": record.sent - begin,
        "end_s": record.end - begin,
        "failure": record.failure,
    }
    if record.failure is not None:
        return found | {"detail": record.detail}
    return found | {
        "ttft_ms": record.ttft * 1000,
        "e2el_ms": record.e2el * 1000,
        "itl_ms": [gap * 1000 for gap in record.itl],
        "prompt_tokens": record.prompt_tokens,
        "output_tokens": record.output_tokens,
    }
