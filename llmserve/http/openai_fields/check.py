"""The one function that goes through the tables, and the rules about several fields."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llmserve.errors import InvalidRequest
from llmserve.http.openai_fields.formats import call_needs_tools
from llmserve.http.openai_fields.refused import REFUSED
from llmserve.http.openai_fields.tables import FIELDS
from llmserve.http.openai_fields.values import missing, unknown_field, wrong
from llmserve.settings import LimitSettings
from llmserve.types import Operation

_REQUIRED: dict[Operation, tuple[str, ...]] = {
    Operation.CHAT: ("messages",),
    Operation.COMPLETION: ("prompt",),
    Operation.RESPONSES: ("input",),
    Operation.MESSAGES: ("messages", "max_tokens"),
    Operation.COUNT_TOKENS: ("messages",),
    Operation.EMBEDDINGS: ("input",),
    Operation.TOKENIZE: (),
    Operation.DETOKENIZE: ("tokens",),
}


def check_fields(operation: Operation, body: dict[str, Any], limits: LimitSettings) -> None:
    """Check the fields of a request body, by name and by value.

    A null means that the field is absent, as it does in OpenAI's service; it is **taken
    out of the body**, because vLLM does not read every null so. Raises ``Unsupported``
    for what this server knows of and does not do, ``InvalidRequest`` for everything else
    that is wrong; both name the field, the value and what is allowed.
    """
    table, refused = FIELDS[operation], REFUSED[operation]
    for name in list(body):
        value = body[name]
        if value is None and (name in table or name in refused):
            del body[name]
        elif name in table:
            table[name](value, name, limits)
        else:
            raise unknown_field(name, table, refused=refused)
    for name in _REQUIRED[operation]:
        if name not in body:
            raise missing(name)
    for rule in _RULES.get(operation, ()):
        rule(body)


# Rules about several fields


def _stream_options(body: dict[str, Any]) -> None:
    if body.get("stream_options") and not body.get("stream"):
        raise InvalidRequest("stream_options needs stream: true.", param="stream_options")


def _top_logprobs(body: dict[str, Any]) -> None:
    for name in ("top_logprobs", "logprob_token_ids"):
        if body.get(name) and not body.get("logprobs"):
            raise InvalidRequest(f"{name} needs logprobs: true.", param=name)


def _max_tokens(body: dict[str, Any]) -> None:
    if body.get("max_tokens") == 0 and not body.get("echo"):
        raise wrong("max_tokens", 0, "an integer from 1 (0 only with echo: true)")


def _min_tokens(body: dict[str, Any]) -> None:
    # An engine that may not stop and has nothing left to say is a stalled engine.
    top = body.get("max_completion_tokens", body.get("max_tokens"))
    if top is not None and body.get("min_tokens", 0) > top:
        raise InvalidRequest(
            f"min_tokens ({body['min_tokens']}) must not be above max_tokens ({top}).",
            param="min_tokens",
        )


def _one_constraint(body: dict[str, Any]) -> None:
    for name in ("response_format", "text"):
        chosen = body.get(name) or {}
        chosen = chosen.get("format", {}) if name == "text" else chosen
        if body.get("structured_outputs") and chosen.get("type", "text") != "text":
            raise InvalidRequest(
                f"structured_outputs and {name} cannot both constrain the answer.",
                param="structured_outputs",
            )


def _continued(body: dict[str, Any]) -> None:
    if body.get("continue_final_message") and body.get("add_generation_prompt", True):
        raise InvalidRequest(
            "continue_final_message needs add_generation_prompt: false.",
            param="continue_final_message",
        )


def _budget(body: dict[str, Any]) -> None:
    budget = body.get("thinking", {}).get("budget_tokens", 0)
    if budget and budget >= body["max_tokens"]:
        raise InvalidRequest(
            f"thinking.budget_tokens ({budget}) must be below max_tokens ({body['max_tokens']}).",
            param="thinking.budget_tokens",
        )


def _prompt_or_messages(body: dict[str, Any]) -> None:
    if ("prompt" in body) == ("messages" in body):
        raise InvalidRequest("Exactly one of prompt and messages is required.", param="prompt")


_RULES: dict[Operation, tuple[Callable[[dict[str, Any]], None], ...]] = {
    Operation.CHAT: (
        _stream_options,
        _top_logprobs,
        _min_tokens,
        _one_constraint,
        _continued,
        call_needs_tools,
    ),
    Operation.COMPLETION: (_stream_options, _max_tokens, _min_tokens, _one_constraint),
    Operation.RESPONSES: (_one_constraint, call_needs_tools),
    Operation.MESSAGES: (_budget, call_needs_tools),
    Operation.COUNT_TOKENS: (call_needs_tools,),
    Operation.TOKENIZE: (_prompt_or_messages, _continued),
}
