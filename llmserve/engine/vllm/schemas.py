"""JSON schemas that the grammar compiler enforces, told from those that it takes.

xgrammar (0.2.8) turns a schema into a grammar and leaves out, without a word or with a
line of its own on standard error, what it cannot express: the answer then breaks the
schema that it was promised to keep. Which keywords those are, alone and together with
others, was found by generating: ``tests/unit/engine/test_vllm_schemas.py`` does so again
and fails when a schema that passes here lets a wrong answer through.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from llmserve.engine.vllm.schema_types import exclusive, is_of_type, types_of, values_of
from llmserve.errors import InvalidRequest, Unsupported

Schema = Mapping[str, Any]

_IGNORED = (
    *("not", "if", "then", "else", "dependentSchemas", "dependentRequired", "dependencies"),
    *("contains", "minContains", "maxContains", "uniqueItems", "multipleOf", "divisibleBy"),
    *("unevaluatedItems", "additionalItems", "disallow", "extends"),
    *("$dynamicRef", "$recursiveRef"),
)
_STRING = ("minLength", "maxLength", "pattern", "format")
_NUMBER = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_OBJECT = (
    *("properties", "required", "additionalProperties", "patternProperties"),
    *("propertyNames", "minProperties", "maxProperties", "unevaluatedProperties"),
)
_ARRAY = ("items", "prefixItems", "minItems", "maxItems")
_ASSERTIONS = ("type", "enum", "const", *_STRING, *_NUMBER, *_OBJECT, *_ARRAY)
_UNIONS = ("anyOf", "oneOf", "allOf")
_FORMATS = frozenset(
    ("email", "date", "time", "date-time", "duration", "ipv4", "ipv6", "hostname", "uuid")
) | frozenset(("uri", "uri-reference", "uri-template", "json-pointer", "relative-json-pointer"))
_LOOK_AROUND = re.compile(r"\(\?(?!:)")
# The compiler knows these, or refuses them itself.
_ESCAPES = frozenset("dDwWsSnrtfvxubBcpPk")
_SHOWN = 60


def check_enforced(schema: Any, path: str) -> None:
    """Raise ``Unsupported`` when a part of the schema would be ignored, ``InvalidRequest``
    when it is no schema; both name the keyword and the field at ``path``."""
    try:
        problem = _problem(schema, path)
    except (AttributeError, TypeError, KeyError) as error:
        raise InvalidRequest(f"{path} is not a JSON schema.", param=path) from error
    if problem:
        raise Unsupported(
            f"{path}: {problem} cannot be enforced while the answer is generated.",
            param=path,
            code="unsupported_value",
        )


def _problem(schema: Any, path: str) -> str | None:
    seen: set[int] = set()
    pending = [schema]
    while pending:
        node = pending.pop()
        if not isinstance(node, Mapping) or id(node) in seen:
            continue
        seen.add(id(node))
        for rule in _RULES:
            if problem := rule(node, schema):
                return problem
        pending.extend(_subschemas(node, path))
    return None


def check_pattern(pattern: str, path: str) -> None:
    """The same for a regular expression."""
    if problem := _pattern_problem(pattern, branches=True):
        raise Unsupported(
            f"{path}: {problem} cannot be enforced while the answer is generated.",
            param=path,
            code="unsupported_value",
        )


def _subschemas(node: Schema, path: str) -> Iterator[Any]:
    for keyword in ("properties", "patternProperties", "$defs", "definitions"):
        named = node.get(keyword, {})
        if not isinstance(named, Mapping):
            raise InvalidRequest(f"{path}: {keyword} must be an object.", param=path)
        yield from named.values()
    for keyword in ("items", "additionalProperties", "unevaluatedProperties"):
        yield node.get(keyword)
    if isinstance(names := node.get("propertyNames"), Mapping):
        # The compiler knows that names are strings.
        yield {"type": "string"} | dict(names)
    for keyword in ("prefixItems", *_UNIONS):
        branches = node.get(keyword, [])
        if not isinstance(branches, list):
            raise InvalidRequest(f"{path}: {keyword} must be an array.", param=path)
        yield from branches


# The rules: each returns what cannot be enforced, or nothing.


def _ignored(node: Schema, root: Any) -> str | None:  # noqa: ARG001
    for keyword in _IGNORED:
        if keyword in node and not (keyword == "uniqueItems" and node[keyword] is False):
            return keyword
    return None


def _reference(node: Schema, root: Any) -> str | None:
    reference = node.get("$ref")
    if reference is None:
        return None
    if not isinstance(reference, str) or not _resolves(reference, root):
        return f"the $ref {_show(reference)} (only '#' and paths through objects of this schema)"
    return _beside(node, "$ref", (*_ASSERTIONS, *_UNIONS))


def _resolves(reference: str, root: Any) -> bool:
    if reference == "#":
        return True
    if not reference.startswith("#/") or "~" in reference or "%" in reference:
        return False
    target = root
    for part in reference[2:].split("/"):
        if not isinstance(target, Mapping) or part not in target:
            return False
        target = target[part]
    return isinstance(target, Mapping | bool)


def _union(node: Schema, root: Any) -> str | None:
    present = [keyword for keyword in _UNIONS if keyword in node]
    if not present:
        return None
    if len(present) > 1:
        return f"{present[0]} together with {present[1]}"
    keyword = present[0]
    branches = node[keyword] if isinstance(node[keyword], list) else []
    if keyword == "allOf" and len(branches) != 1:
        return "allOf with other than one branch"
    if keyword == "oneOf" and not exclusive([_resolved(branch, root) for branch in branches]):
        return "oneOf with branches that may both be valid (anyOf can)"
    names = tuple(name for name in _ASSERTIONS if name != "type")
    if problem := _beside(node, keyword, names):
        return problem
    if "type" in node and not all(
        types_of(_resolved(branch, root)) <= types_of(node) for branch in branches
    ):
        return f"{keyword} together with a type that its branches do not repeat"
    return None


def _fixed(node: Schema, root: Any) -> str | None:  # noqa: ARG001
    """``const`` and ``enum`` win over everything beside them."""
    values = values_of(node)
    if values is None:
        return None
    keyword = "const" if "const" in node else "enum"
    if "type" in node and any(not is_of_type(value, types_of(node)) for value in values):
        return f"{keyword} with a value that is not of the type beside it"
    if keyword == "const" and isinstance(node.get("enum"), list) and values[0] not in node["enum"]:
        return "const with a value that is not in the enum beside it"
    return _beside(node, keyword, (*_STRING, *_NUMBER, *_OBJECT, *_ARRAY, *_UNIONS))


def _typed(node: Schema, root: Any) -> str | None:  # noqa: ARG001
    """What is said about a type counts only where the type is said as well."""
    if "type" in node:
        types = node["type"]
        if types == [] or not isinstance(types, str | list):
            return f"type {_show(types)}"
        return None
    if values_of(node) is not None or any(keyword in node for keyword in (*_UNIONS, "$ref")):
        return None
    kinds: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
        ("string", _STRING, ()),
        ("number", _NUMBER, ()),
        ("object", _OBJECT, ("properties",)),
        ("array", _ARRAY, ("items", "prefixItems")),
    )
    for kind, names, enough in kinds:
        found = [name for name in names if name in node]
        if found and not any(name in node for name in enough):
            return f"{found[0]} without type {kind!r}"
    if any(name in node for name in _OBJECT) and any(name in node for name in _ARRAY):
        return "keywords of objects and of arrays without a type"
    return None


def _string(node: Schema, root: Any) -> str | None:  # noqa: ARG001
    lengths = [name for name in ("minLength", "maxLength") if name in node]
    for keyword in ("pattern", "format"):
        if keyword in node and lengths:
            return f"{keyword} together with {lengths[0]}"
    if "pattern" in node and "format" in node:
        return "pattern together with format"
    if "format" in node and str(node["format"]) not in _FORMATS:
        return f"the format {_show(node['format'])}"
    if isinstance(node.get("pattern"), str):
        return _pattern_problem(node["pattern"])
    return None


def _object(node: Schema, root: Any) -> str | None:  # noqa: ARG001
    properties = node.get("properties") or {}
    required = node.get("required") or []
    if isinstance(required, list) and isinstance(properties, Mapping):
        for name in required:
            if name not in properties:
                return f"required {_show(name)}, which is not among properties,"
    for one, other in itertools.combinations(
        ("propertyNames", "patternProperties", "properties", "unevaluatedProperties"), 2
    ):
        if one in node and other in node and (one, other) != ("properties", other):
            return f"{one} together with {other}"
    patterns = node.get("patternProperties") or {}
    if isinstance(patterns, Mapping):
        if len(patterns) > 1:
            return "patternProperties with several patterns"
        for pattern in patterns:
            if problem := _pattern_problem(pattern):
                return problem
    if "propertyNames" in node and "additionalProperties" in node:
        return "propertyNames together with additionalProperties"
    return None


_RULES: tuple[Callable[[Schema, Any], str | None], ...] = (
    *(_ignored, _reference, _union, _fixed, _typed, _string, _object),
)


def _pattern_problem(pattern: str, *, branches: bool = False) -> str | None:
    """Anchors in the middle and unknown escapes are ignored; the compiler says so on
    standard error, with the text of the pattern. ``branches``: the whole output must match,
    so that anchors at the ends of a branch change nothing."""
    if _LOOK_AROUND.search(pattern):
        return "look-around or a flag in a regular expression"
    in_class, last = False, len(pattern) - 1
    escaped = False
    for at, character in enumerate(pattern):
        if escaped:
            escaped = False
            if character.isascii() and character.isalpha() and character not in _ESCAPES:
                return f"the escape \\{character} in a regular expression"
        elif character == "\\":
            escaped = True
        elif character in "[]":
            in_class = character == "["
        elif character in "^$" and not in_class:
            end, neighbour = (0, at - 1) if character == "^" else (last, at + 1)
            beside_branch = branches and 0 <= neighbour <= last and pattern[neighbour] == "|"
            if at != end and not beside_branch:
                return f"the anchor {character} in the middle of a regular expression"
    return None


def _beside(node: Schema, keyword: str, names: tuple[str, ...]) -> str | None:
    other = next((name for name in names if name in node and name != keyword), None)
    return None if other is None else f"{keyword} together with {other}"


def _resolved(schema: Any, root: Any) -> Any:
    """What a branch that is only a reference refers to."""
    for _ in range(8):
        reference = schema.get("$ref") if isinstance(schema, Mapping) else None
        if not isinstance(reference, str) or not _resolves(reference, root):
            break
        target = root
        for part in reference[2:].split("/") if reference != "#" else ():
            target = target[part]
        schema = target
    return schema


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
