"""Is this reply what OpenAI's (or Anthropic's) published schema says?

The schemas in ``schemas/`` are our own, written down as facts: required fields, types,
nulls, enumerations. They are stricter than the published ones in one way (a field that
the protocol does not know may be there, but not as null) and hold only what this server
can send. Where the published schema contradicts what OpenAI itself sends, they follow
the service: ``finish_reason`` is null in a completion chunk before the last, the first
echoed token has no log probability, and an embedding may be base64.

    from tests.conformance.validator import assert_openai
    assert_openai("chat", response.json())
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError, best_match
from referencing import Registry, Resource

_SCHEMAS = Path(__file__).parent / "schemas"
KINDS = frozenset(path.stem for path in _SCHEMAS.glob("*.json")) - {"common"}


@functools.cache
def _registry() -> Registry[Any]:
    resources = (
        Resource.from_contents(json.loads(path.read_text("utf-8")))
        for path in sorted(_SCHEMAS.glob("*.json"))
    )
    return Registry().with_resources((str(resource.id()), resource) for resource in resources)


@functools.cache
def _validator(kind: str) -> Draft202012Validator:
    if kind not in KINDS:
        raise KeyError(f"{kind!r} is not one of {sorted(KINDS)}")
    schema = json.loads((_SCHEMAS / f"{kind}.json").read_text("utf-8"))
    return Draft202012Validator(schema, registry=_registry())


def validate(kind: str, data: Any) -> list[str]:
    """What is wrong with a reply of that kind, one line for each; nothing when it conforms."""
    return [_line(error) for error in _validator(kind).iter_errors(data)]


def assert_openai(kind: str, data: Any) -> None:
    """Fail with all that is wrong, and the reply, when it does not conform."""
    errors = validate(kind, data)
    assert not errors, "\n".join([f"not a valid {kind}:", *errors, json.dumps(data)[:2000]])


def _line(error: ValidationError) -> str:
    # Of a union, the branch that comes closest is the one that was meant.
    inner = best_match(_branch(error)) if error.context else error
    path = "/".join(str(part) for part in (inner or error).absolute_path)
    return f"  at /{path}: {(inner or error).message[:200]}"


def _branch(error: ValidationError) -> list[ValidationError]:
    """The errors of the branch of a union that is about this ``type``, if there is one."""
    branches: dict[Any, list[ValidationError]] = {}
    for inner in error.context or ():
        branches.setdefault(inner.schema_path[0], []).append(inner)

    def is_other_type(inner: ValidationError) -> bool:
        return list(inner.path)[-1:] == ["type"] and inner.validator == "enum"

    right = [errors for errors in branches.values() if not any(map(is_other_type, errors))]
    return min(right or list(branches.values()), key=len)
