"""What was asked for. Valid by construction: the command line has checked it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from llmserve.errors import LlmserveError
from llmserve.loadtest.arrivals import Pattern
from llmserve.loadtest.figures import Objective
from llmserve.loadtest.lengths import Lengths

Endpoint = Literal["chat", "completions"]


class LoadTestFailed(LlmserveError):
    """The load test cannot be run, or has nothing to say. The message says why."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What is asked. Lengths are tokens as the server counts them, template included.

    ``prefix_share`` of the prompts begin with one of ``prefix_groups`` texts of
    ``prefix_tokens`` tokens, which come on top of the prompt's own length. ``file`` is a
    ShareGPT file; it brings its own prompts, and ``answers`` of ``None`` its own lengths.
    """

    prompts: Lengths
    answers: Lengths | None
    prefix_tokens: int = 0
    prefix_share: float = 1.0
    prefix_groups: int = 1
    file: Path | None = None


@dataclass(frozen=True, slots=True)
class Load:
    """How hard. ``levels``, one per step: requests a second in an open loop, requests at
    once in a closed one. A step begins new requests for ``seconds`` or until there have
    been ``requests``, whichever is first; ``None`` is no bound, and one is always given."""

    kind: Literal["open", "closed"]
    levels: tuple[float, ...]
    seconds: float | None
    requests: int | None
    pattern: Pattern = "poisson"
    max_in_flight: int = 4096


@dataclass(frozen=True, slots=True)
class Address:
    """One server as the user named it. ``model`` ``None``: the first that it serves."""

    url: str
    model: str | None
    api_key: str | None = field(repr=False, default=None)


@dataclass(frozen=True, slots=True)
class Plan:
    """One whole run. ``addresses`` are one server, or two to compare."""

    addresses: tuple[Address, ...]
    endpoint: Endpoint
    workload: Workload
    load: Load
    seed: int
    rounds: int = 1
    warmup: int = 4
    timeout: float = 300.0
    objectives: tuple[Objective, ...] = ()
    require: float | None = None
    """Share of the requests that must meet the objectives at every step, 0 to 1."""
    body: Mapping[str, Any] = field(default_factory=dict)
    """Fields for every request, over those of ours."""
