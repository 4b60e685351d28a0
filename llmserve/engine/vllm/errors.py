"""The one table from vLLM's errors to ours.

``tests/unit/engine/test_vllm_errors.py`` fails when vLLM grows an exception class that
is not covered here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from vllm.exceptions import (
    GenerationError,
    GracefulHTTPError,
    RetryableRequestError,
    VLLMClientError,
    VLLMNotFoundError,
    VLLMServerError,
    VLLMUnprocessableEntityError,
    VLLMValidationError,
)
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from llmserve.engine.grammars import GrammarRefused
from llmserve.errors import (
    EngineDied,
    InternalError,
    InvalidRequest,
    LlmserveError,
    NotFound,
    NotImplementedHere,
    Overloaded,
    PromptTooLong,
    Unavailable,
)

# First match wins, so a class stands before its bases.
TABLE: tuple[tuple[type[BaseException], type[LlmserveError]], ...] = (
    (EngineDeadError, EngineDied),
    (EngineGenerateError, InternalError),
    (RetryableRequestError, Unavailable),
    (GenerationError, InternalError),
    (GracefulHTTPError, Overloaded),
    (VLLMNotFoundError, NotFound),
    (VLLMUnprocessableEntityError, InvalidRequest),
    (VLLMValidationError, InvalidRequest),
    (VLLMClientError, InvalidRequest),
    (VLLMServerError, InternalError),
    (GrammarRefused, InvalidRequest),
    # vLLM has not moved all of its checks of a request to its own classes yet.
    (NotImplementedError, NotImplementedHere),
    (ValidationError, InvalidRequest),
    (ValueError, InvalidRequest),
    (OverflowError, InvalidRequest),
)

_TOO_LONG = {"input_tokens", "input_text"}
_MAX_MESSAGE = 1000
_ABOUT_PROMPT = re.compile(r"out of vocabulary|prompt cannot be empty")
_BEGINNING = re.compile(r"`?([a-z]+(?:_[a-z]+)*)\b")
_SAMPLING_FIELDS = frozenset(
    (
        *("temperature", "top_p", "top_k", "min_p", "seed", "stop", "stop_token_ids"),
        *("presence_penalty", "frequency_penalty", "repetition_penalty", "bad_words", "n"),
        *("max_tokens", "min_tokens", "logprobs", "prompt_logprobs", "logit_bias"),
        *("allowed_token_ids", "logprob_token_ids", "truncate_prompt_tokens"),
    )
)
_TYPES = frozenset(("str", "int", "float", "bool", "list", "dict", "tuple", "bytes", "none"))
# xgrammar says where in its own C++ source it gave up; that is no business of a client.
_GRAMMAR = re.compile(
    r"Failed to (?:transform|convert) .*? (?:into a |to )grammar: ?(.*)", re.DOTALL
)
_SOURCE_LINE = re.compile(r"\[\d+:\d+:\d+\] \S+:\d+: ")


@dataclass(frozen=True, slots=True)
class Fields:
    """What the request calls the fields that vLLM names by its own words: the prompt,
    and the grammar that the output must follow."""

    prompt: str = "prompt"
    grammar: str | None = None


def translate(error: BaseException, fields: Fields) -> LlmserveError:
    """Our error for anything that vLLM raised. A server error says nothing of its cause
    to the client; the caller logs it."""
    if isinstance(error, LlmserveError):
        return error
    if isinstance(error, ValidationError):
        return _from_pydantic(error)
    if isinstance(error, EngineGenerateError) and isinstance(error.__cause__, OverflowError):
        return InvalidRequest("A number in the request does not fit into 64 bits.")
    for theirs, ours in TABLE:
        if isinstance(error, theirs):
            return _make(ours, error, fields)
    if any(base.__name__ == "TemplateError" for base in type(error).__mro__):
        return InvalidRequest(f"The chat template refuses these messages: {error}")
    return InternalError()


def from_error_body(body: dict[str, Any], fields: Fields) -> LlmserveError:
    """Our error for an error object that vLLM *returned* (or streamed) instead of
    raising it: ``{"message", "type", "param", "code"}`` with a status as ``code``."""
    message = str(body.get("message") or "The engine refused this request.")[:_MAX_MESSAGE]
    status, param = body.get("code"), body.get("param")
    if status == 404:
        return NotFound(message, param=param)
    if status == 501:
        return NotImplementedHere(message)
    if status == 503:
        return Unavailable(message)
    if isinstance(status, int) and 400 <= status < 500:
        return _invalid(message, param, fields)
    return InternalError()


def _make(ours: type[LlmserveError], error: BaseException, fields: Fields) -> LlmserveError:
    if ours in (EngineDied, InternalError):
        return ours()
    if isinstance(error, GrammarRefused):
        return InvalidRequest(
            f"{fields.grammar or 'The grammar'} cannot be enforced: {error}", param=fields.grammar
        )
    if ours is InvalidRequest:
        message = str(error.args[0]) if error.args else str(error)
        return _invalid(message[:_MAX_MESSAGE], getattr(error, "parameter", None), fields)
    return ours(str(error)[:_MAX_MESSAGE])


def _invalid(message: str, param: str | None, fields: Fields) -> InvalidRequest:
    if param in _TOO_LONG:
        return InvalidRequest(message, param=fields.prompt, code=PromptTooLong.code)
    if grammar := _GRAMMAR.match(message):
        detail = _SOURCE_LINE.sub("", grammar[1]).strip()
        return InvalidRequest(
            f"{fields.grammar or 'The grammar'} cannot be enforced: {detail}", param=fields.grammar
        )
    return InvalidRequest(message, param=param or _named(message, fields))


def _named(message: str, fields: Fields) -> str | None:
    """The field that a message is about whose sender did not say so."""
    if _ABOUT_PROMPT.search(message):
        return fields.prompt
    beginning = _BEGINNING.match(message)
    return beginning[1] if beginning and beginning[1] in _SAMPLING_FIELDS else None


def _from_pydantic(error: ValidationError) -> InvalidRequest:
    """The first mistake in a request body, with the path to it and no class names."""
    first = error.errors(include_url=False)[0]
    cause = first.get("ctx", {}).get("error")
    path = ".".join(str(part) for part in first["loc"] if isinstance(part, int) or _is_field(part))
    param = getattr(cause, "parameter", None) or path or None
    detail = str(cause.args[0]) if cause is not None and cause.args else first["msg"]
    return InvalidRequest(f"{param}: {detail}" if param else detail, param=param)


def _is_field(part: str) -> bool:
    """Whether a part of pydantic's path is a field; the others say which branch of a union
    was tried: a class, a type, or a word with brackets."""
    return part.isidentifier() and part.islower() and part not in _TYPES
