"""The wire schema of the native routes, and its conversion to the domain."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import msgspec
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from llmserve.engine.grammars import check_regex, check_schema
from llmserve.errors import InvalidRequest
from llmserve.http.openai_fields.values import unknown_field
from llmserve.settings import LimitSettings
from llmserve.types import Constraint, GenerateRequest, Message, Sampling

_INT64 = 2**63
_INT32 = 2**31
_SHOWN = 60

Finite = Annotated[float, Field(allow_inf_nan=False)]
Text = Annotated[str, StringConstraints(min_length=1)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class WireMessage(_Body):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant", "developer", "tool"]
    content: str


class GenerateBody(_Body):
    """``POST /generate`` and ``POST /generate/stream``. Exactly one of ``prompt`` and
    ``messages``; at most one of ``json_schema``, ``regex`` and ``choice``."""

    prompt: Text | None = Field(None, description="Text to continue, as it is.")
    messages: Annotated[list[WireMessage], Field(min_length=1)] | None = Field(
        None, description="Conversation, rendered with the model's chat template."
    )
    model: Text | None = Field(None, description="Default: the served model.")
    max_tokens: int | None = Field(
        None, ge=1, lt=_INT32, description="Default: what the context has room for."
    )
    temperature: Finite | None = Field(None, ge=0, le=2, description="0 is greedy.")
    top_p: Finite | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, lt=_INT32, description="0 or -1: all tokens.")
    min_p: Finite | None = Field(None, ge=0, le=1)
    stop: Text | list[Text] | None = Field(None, description="Strings that end the text.")
    seed: int | None = Field(None, ge=-_INT64, lt=_INT64)
    presence_penalty: Finite | None = Field(None, ge=-2, le=2)
    frequency_penalty: Finite | None = Field(None, ge=-2, le=2)
    repetition_penalty: Finite | None = Field(None, gt=0, le=10)
    n: int = Field(1, ge=1, description="How many choices.")
    logprobs: int | None = Field(None, ge=0, description="Alternatives reported per token.")
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(
        None, description="Token id to bias."
    )
    ignore_eos: bool = False
    json_schema: dict[str, Any] | None = Field(None, description="{} means any JSON object.")
    regex: Text | None = None
    choice: Annotated[list[Text], Field(min_length=1)] | None = None
    priority: int = Field(0, ge=-100, le=100, description="Lower is served earlier.")
    timeout_s: Finite | None = Field(
        None, gt=0, description="Seconds after which the request ends with an error."
    )


def parse(body: dict[str, Any], limits: LimitSettings, request_id: str) -> GenerateRequest:
    """A valid request, or ``InvalidRequest`` naming the field, the value and what is
    allowed."""
    if "inputs" in body:
        raise InvalidRequest(
            "inputs is reserved for the TGI protocol; send prompt or messages.", param="inputs"
        )
    try:
        wire = GenerateBody.model_validate(body)
    except ValidationError as error:
        raise _explain(error) from error
    if (wire.prompt is None) == (wire.messages is None):
        raise InvalidRequest("Send exactly one of prompt and messages.", param="prompt")
    _check_limits(wire, limits)
    messages = wire.messages and tuple(Message(m.role, m.content) for m in wire.messages)
    return GenerateRequest(
        id=request_id,
        prompt=wire.prompt,
        messages=messages or None,
        sampling=_sampling(wire),
        priority=wire.priority,
    )


def _sampling(wire: GenerateBody) -> Sampling:
    stop = wire.stop or ()
    return Sampling(
        max_tokens=wire.max_tokens,
        temperature=wire.temperature,
        top_p=wire.top_p,
        top_k=wire.top_k,
        min_p=wire.min_p,
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        seed=wire.seed,
        presence_penalty=wire.presence_penalty,
        frequency_penalty=wire.frequency_penalty,
        repetition_penalty=wire.repetition_penalty,
        n=wire.n,
        logprobs=wire.logprobs,
        logit_bias=_logit_bias(wire),
        ignore_eos=wire.ignore_eos,
        constraint=_constraint(wire),
    )


def _logit_bias(wire: GenerateBody) -> dict[int, float]:
    bias = wire.logit_bias or {}
    for token in bias:
        if not token.isascii() or not token.isdecimal() or int(token[:12]) >= _INT32:
            raise InvalidRequest(
                f"logit_bias has the key {token[:_SHOWN]!r}; keys are token ids.",
                param="logit_bias",
            )
    return {int(token): value for token, value in bias.items() if not math.isnan(value)}


def _constraint(wire: GenerateBody) -> Constraint | None:
    given = [n for n in ("json_schema", "regex", "choice") if getattr(wire, n) is not None]
    if len(given) > 1:
        raise InvalidRequest(f"Send at most one of {' and '.join(given)}.", param=given[1])
    if not given:
        return None
    choice = None if wire.choice is None else tuple(wire.choice)
    return Constraint(json_schema=wire.json_schema, regex=wire.regex, choice=choice)


def _check_limits(wire: GenerateBody, limits: LimitSettings) -> None:
    stop = [wire.stop] if isinstance(wire.stop, str) else wire.stop or []
    grammar = wire.json_schema or wire.regex or wire.choice or ""
    checks = (
        ("n", wire.n, limits.max_n, ""),
        ("logprobs", wire.logprobs or 0, limits.max_logprobs, ""),
        ("stop", len(stop), limits.max_stop_strings, "stop strings"),
        ("stop", max(map(len, stop), default=0), limits.max_stop_chars, "characters in a string"),
        ("logit_bias", len(wire.logit_bias or ()), limits.max_logit_bias, "entries"),
        ("messages", len(wire.messages or ()), limits.max_messages, "messages"),
        (
            "json_schema" if wire.json_schema else "regex" if wire.regex else "choice",
            len(msgspec.json.encode(grammar)),
            limits.max_grammar_bytes,
            "bytes",
        ),
    )
    for field, value, most, unit in checks:
        if value > most:
            said = f"has {value} {unit}" if unit else f"is {value}"
            raise InvalidRequest(f"{field} {said}; at most {most} are allowed.", param=field)
    if wire.json_schema is not None:
        check_schema(wire.json_schema, "json_schema", limits)
    if wire.regex is not None:
        check_regex(wire.regex, "regex", limits)


def _explain(error: ValidationError) -> InvalidRequest:
    first = error.errors(include_url=False)[0]
    path = ".".join(str(part) for part in first["loc"])
    field = str(first["loc"][0]) if first["loc"] else None
    if first["type"] == "extra_forbidden":
        *parents, name = first["loc"]
        known = () if parents else GenerateBody.model_fields
        return unknown_field(str(name), known, path=".".join(map(str, parents)))
    value = repr(first["input"])
    shown = value if len(value) <= _SHOWN else value[:_SHOWN] + "…"
    return InvalidRequest(f"{path} is {shown}: {_lower(first['msg'])}.", param=field)


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
