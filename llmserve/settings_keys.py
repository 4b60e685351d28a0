"""What the settings tree looks like from outside: every key, what it allows, and which
key somebody meant who wrote another one. Read from the tree itself, so that messages,
``llmserve config`` and the reference table cannot disagree with it.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from enum import StrEnum
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from llmserve.settings import Settings

ENGINE = "engine"
"""The section whose keys are vLLM's, not ours."""


class Kind(StrEnum):
    """How a value is written. ``TEXT`` and ``TEXTS`` are taken literally (a version
    ``1.10`` stays ``1.10``), everything else is read as YAML."""

    TEXT = "text"
    TEXTS = "list of texts"
    CHOICE = "choice"
    SWITCH = "switch"
    WHOLE = "whole number"
    NUMBER = "number"


@dataclass(frozen=True, slots=True)
class Key:
    """One setting. ``name`` is ``section.field``; ``allowed`` ends the sentence
    "it must be …"."""

    name: str
    kind: Kind
    optional: bool
    secret: bool
    allowed: str
    default: Any
    description: str


def setting_keys() -> dict[str, Key]:
    """Every setting by its dotted name, in the order of the tree, without ``engine``."""
    keys: dict[str, Key] = {}
    for section, info in Settings.model_fields.items():
        model = info.annotation
        if isinstance(model, type) and issubclass(model, BaseModel):
            for field, field_info in model.model_fields.items():
                key = _describe(f"{section}.{field}", field_info)
                keys[key.name] = key
    return keys


def section_names() -> tuple[str, ...]:
    """The top level of the tree, ``engine`` included."""
    return tuple(Settings.model_fields)


def nearest(name: str, names: Iterable[str]) -> list[str]:
    """The names most like this one, best first; none when nothing is alike.

    What counts is the last part: who writes ``port`` means ``server.port``, and
    ``timeout`` means one of those whose names contain it.
    """
    section, _, leaf = name.lower().replace("-", "_").rpartition(".")
    scored = []
    for candidate in names:
        its_section, _, its_leaf = candidate.rpartition(".")
        likeness = _likeness(leaf, its_leaf)
        if likeness >= 0.6:
            scored.append((likeness + 0.1 * _likeness(section, its_section), candidate))
    best = max(scored, default=(0.0, ""))[0]
    close = sorted((-score, candidate) for score, candidate in scored if score > best - 0.1)
    return [candidate for _, candidate in close[:4]]


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """`` Did you mean a or b?``, or nothing when no name is alike."""
    found = nearest(name, names)
    return f" Did you mean {' or '.join(found)}?" if found else ""


def unknown_setting(name: str, keys: Mapping[str, Key]) -> str:
    """The sentence about a name that is not in the tree."""
    section, dot, _ = name.partition(".")
    hint = did_you_mean(name, keys if dot else [*section_names(), *keys])
    if not hint:
        inside = [key.rpartition(".")[2] for key in keys if key.startswith(f"{section}.")]
        hint = (
            f" {section} has {', '.join(inside)}."
            if inside
            else f" The sections are {', '.join(section_names())}."
        )
    return f"{name} is not a setting.{hint}"


def _likeness(a: str, b: str) -> float:
    matcher = SequenceMatcher(None, a, b)
    # The cheap upper bound first: 300 names are compared while a user waits.
    ratio = matcher.ratio() if matcher.quick_ratio() >= 0.6 else 0.0
    contained = len(a) >= 4 and len(b) >= 4 and (a in b or b in a)
    return max(ratio, 0.8) if contained else ratio


def _describe(name: str, info: FieldInfo) -> Key:
    annotation = info.annotation
    optional = get_origin(annotation) in (Union, types.UnionType)
    if optional:
        annotation = next(arg for arg in get_args(annotation) if arg is not type(None))
    bounds = info.metadata
    if get_origin(annotation) is Annotated:
        # The bounds of "a count, or null" belong to the count.
        annotation, field = get_args(annotation)[:2]
        bounds = [*bounds, *field.metadata]
    item = get_args(annotation)[0] if get_origin(annotation) is tuple else annotation
    kind = _kind(annotation)
    allowed = _allowed(kind, annotation, bounds)
    return Key(
        name=name,
        kind=kind,
        optional=optional,
        secret=item is SecretStr,
        allowed=f"{allowed}, or null" if optional else allowed,
        default=info.default,
        description=info.description or "",
    )


def _kind(annotation: Any) -> Kind:
    if get_origin(annotation) is tuple:
        return Kind.TEXTS
    if get_origin(annotation) is Literal:
        return Kind.CHOICE
    kinds = {bool: Kind.SWITCH, int: Kind.WHOLE, float: Kind.NUMBER}
    return kinds.get(annotation, Kind.TEXT)


def _allowed(kind: Kind, annotation: Any, bounds: Sequence[Any]) -> str:
    if kind is Kind.CHOICE:
        return f"one of {', '.join(map(str, get_args(annotation)))}"
    if kind is Kind.SWITCH:
        return "true or false"
    if kind is Kind.TEXTS:
        return "a list of texts"
    if kind is Kind.TEXT:
        return "text, not empty" if _bound(bounds, "min_length") else "text"
    noun = "a whole number" if kind is Kind.WHOLE else "a number"
    low, high = _bound(bounds, "ge"), _bound(bounds, "le")
    if low is not None and high is not None:
        return (
            f"{noun} from {low:g} to {high:g}" if high < 10**6 else f"{noun} from {low} to {high}"
        )
    return noun if low is None else f"{noun} of at least {low}"


def _bound(bounds: Sequence[Any], name: str) -> Any:
    return next((getattr(bound, name) for bound in bounds if hasattr(bound, name)), None)
