"""The table from vLLM's errors to ours is complete."""

from __future__ import annotations

import importlib
from typing import Any, Literal

import pytest
from pydantic import BaseModel, ValidationError

from llmserve.errors import (
    EngineDied,
    InternalError,
    InvalidRequest,
    LlmserveError,
    NotFound,
    NotImplementedHere,
    Overloaded,
    Unavailable,
)

pytestmark = [pytest.mark.real, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def errors() -> Any:
    return pytest.importorskip("llmserve.engine.vllm.errors")


def subclasses(cls: type[BaseException]) -> set[type[BaseException]]:
    found = set(cls.__subclasses__())
    return found.union(*(subclasses(sub) for sub in found)) if found else found


def vllm_errors() -> set[type[BaseException]]:
    root = importlib.import_module("vllm.exceptions").VLLMError
    importlib.import_module("vllm.v1.engine.exceptions")
    return subclasses(root)


def test_every_error_of_vllm_is_covered(errors: Any) -> None:
    """A new class of vLLM's that falls through to the plain root must be looked at."""
    known = tuple(theirs for theirs, _ in errors.TABLE)
    found = vllm_errors()
    assert len(found) > 10
    for cls in found:
        assert issubclass(cls, known), f"{cls.__name__} is not in the table"


def test_the_order_puts_a_class_before_its_bases(errors: Any) -> None:
    table = [theirs for theirs, _ in errors.TABLE]
    for index, theirs in enumerate(table):
        shadowed = [later for later in table[index + 1 :] if issubclass(later, theirs)]
        assert not shadowed, f"{theirs.__name__} hides {shadowed}"


def test_statuses(errors: Any) -> None:
    vllm = importlib.import_module("vllm.exceptions")
    engine = importlib.import_module("vllm.v1.engine.exceptions")
    fields = errors.Fields("messages", "response_format")
    cases: list[tuple[BaseException, type[LlmserveError]]] = [
        (engine.EngineDeadError(), EngineDied),
        (engine.EngineGenerateError(), InternalError),
        (vllm.VLLMValidationError("no", parameter="seed"), InvalidRequest),
        (vllm.VLLMNotFoundError("no"), NotFound),
        (vllm.QueueOverflowError(), Overloaded),
        (vllm.RetryableRequestError(), Unavailable),
        (NotImplementedError("no"), NotImplementedHere),
        (ValueError("no"), InvalidRequest),
        (RuntimeError("secret /path"), InternalError),
    ]
    for theirs, ours in cases:
        assert type(errors.translate(theirs, fields)) is ours, theirs
    assert errors.translate(RuntimeError("secret"), fields).message.find("secret") == -1
    assert errors.translate(cases[2][0], fields).param == "seed"


def test_a_prompt_that_is_too_long_names_the_request_s_own_field(errors: Any) -> None:
    vllm = importlib.import_module("vllm.exceptions")
    error = vllm.VLLMValidationError("too long", parameter="input_tokens", value=9000)
    ours = errors.translate(error, errors.Fields("messages"))
    assert (ours.param, ours.code) == ("messages", "context_length_exceeded")


def test_grammar_errors_lose_the_source_line(errors: Any) -> None:
    text = "Failed to transform json schema into a grammar: [06:44:16] /x/y.cc:49: Unsupported."
    ours = errors.translate(ValueError(text), errors.Fields("prompt", "json_schema"))
    assert ours.message == "json_schema cannot be enforced: Unsupported."
    assert ours.param == "json_schema"


def test_returned_error_objects(errors: Any) -> None:
    fields = errors.Fields("prompt")
    body = {"message": "m", "type": "x", "param": "p", "code": 400}
    assert isinstance(errors.from_error_body(body, fields), InvalidRequest)
    assert isinstance(errors.from_error_body(body | {"code": 404}, fields), NotFound)
    assert isinstance(errors.from_error_body(body | {"code": 503}, fields), Unavailable)
    assert isinstance(errors.from_error_body(body | {"code": 500}, fields), InternalError)


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ("min_tokens must be less than or equal to max_tokens=4, got 9.", "min_tokens"),
        ("allowed_token_ids contains out-of-vocab token id!", "allowed_token_ids"),
        ("Token id 100000000 is out of vocabulary", "input"),
        ("something else is wrong", None),
    ],
)
def test_a_field_is_named_although_vllm_does_not(
    errors: Any, message: str, param: str | None
) -> None:
    assert errors.translate(ValueError(message), errors.Fields("input")).param == param


def test_paths_into_a_body_have_no_class_names(errors: Any) -> None:
    class SomeCallParam(BaseModel):
        type: Literal["function"]

    class SomeMessageParam(BaseModel):
        tool_calls: list[SomeCallParam]

    class Body(BaseModel):
        messages: list[SomeMessageParam | str]

    with pytest.raises(ValidationError) as caught:
        Body.model_validate({"messages": [{"tool_calls": [{"type": "x"}]}]})
    ours = errors.translate(caught.value, errors.Fields())
    assert ours.param == "messages.0.tool_calls.0.type"
    assert "Param" not in ours.message
