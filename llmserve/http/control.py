"""How a client steers its request besides what it asks: a deadline and a priority, in the
body or in a header, whatever the protocol."""

from __future__ import annotations

import math
from typing import Any

from starlette.requests import Request

from llmserve.engine.protocol import Engine
from llmserve.errors import InvalidRequest
from llmserve.gateway.demand import Demand, estimate_tokens
from llmserve.http.context import header

TIMEOUT_HEADER = "x-request-timeout"

_PROMPT_FIELDS = ("prompt", "messages", "input", "system", "instructions", "tools")
_MAX_TOKENS_FIELDS = ("max_completion_tokens", "max_tokens", "max_output_tokens")


def demand_of(
    request: Request, body: dict[str, Any], engine: Engine, *, generates: bool = True
) -> Demand:
    """What the request asks of the server; what does not generate needs no tokens set aside
    for an answer. Takes ``timeout_s`` and ``priority`` out of the
    body: they are ours, not the engine's. Raises ``InvalidRequest``, also for a prompt
    that can never fit: waiting would not help it."""
    size = request.state.body_bytes
    info = engine.info
    most = info.max_model_len * info.chars_per_token
    if size > most:
        _check_fits(body, most, info.max_model_len)
    timeouts = (_header_timeout(request), body.pop("timeout_s", None))
    prompts = _prompts(body)
    sequences = prompts * int(body.get("n") or 1)
    estimate = min(estimate_tokens(size), prompts * info.max_model_len)
    return Demand(
        prompt_tokens=estimate,
        max_tokens=sequences * _max_tokens(body, info.max_model_len, estimate // prompts)
        if generates
        else 0,
        sequences=sequences,
        bounded=not generates or any(body.get(name) is not None for name in _MAX_TOKENS_FIELDS),
        timeout_s=min((t for t in timeouts if t is not None), default=None),
        priority=body.pop("priority", None) or 0,
    )


def _header_timeout(request: Request) -> float | None:
    text = header(request.scope, TIMEOUT_HEADER.encode())
    if text is None:
        return None
    try:
        seconds = float(text) if "_" not in text else math.nan
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds > 0):
        raise InvalidRequest(
            f"The header {TIMEOUT_HEADER} is {text[:40]!r}; it must be seconds, above 0.",
            param=TIMEOUT_HEADER,
        )
    return seconds


def _prompts(body: dict[str, Any]) -> int:
    """How many prompts the body holds: only completions and embeddings take several."""
    prompt = body.get("prompt", body.get("input"))
    if not isinstance(prompt, list) or not prompt or isinstance(prompt[0], int | dict):
        return 1
    return len(prompt)


def _max_tokens(body: dict[str, Any], context: int, prompt: int) -> int:
    """What one answer may have: what the client allows, or what the context has room for."""
    asked = next((body[name] for name in _MAX_TOKENS_FIELDS if body.get(name) is not None), None)
    room = max(1, context - prompt)
    return room if asked is None else min(int(asked), room)


def _check_fits(body: dict[str, Any], most: int, context: int) -> None:
    """Whole bodies are one prompt, but for lists of texts, which are one prompt each."""
    fields = [name for name in _PROMPT_FIELDS if name in body]
    field = next(iter(fields), "prompt")
    texts = body.get(field)
    if isinstance(texts, list) and all(isinstance(text, str) for text in texts):
        longest = max(map(len, texts), default=0)
    else:
        longest = sum(_characters(body[name]) for name in fields)
    if longest > most:
        raise InvalidRequest(
            f"The prompt has {longest} characters; this model's context of {context} tokens "
            f"holds at most {most}.",
            param=field,
            code="context_length_exceeded",
        )


def _characters(value: Any) -> int:
    """The characters of all strings in a value, without recursion."""
    total, stack = 0, [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            total += len(item)
        elif isinstance(item, dict):
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)
    return total
