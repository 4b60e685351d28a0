"""Reading request bodies: each field once, with its limits, its name in the error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from llmserve.engine.fake.tokens import EOS, decode
from llmserve.errors import InvalidRequest, Unsupported
from llmserve.types import Constraint, Message, Sampling

_ROLES = ("system", "user", "assistant", "developer", "tool")
_TEXT_PARTS = ("text", "input_text", "output_text")


class Body:
    """A JSON object of a request. A field that is null counts as absent."""

    def __init__(self, fields: Any, path: str = "") -> None:
        if not isinstance(fields, dict):
            raise InvalidRequest(f"{path or 'the body'} must be an object.", param=path or None)
        self._fields = fields
        self._path = f"{path}." if path else ""

    def get(self, name: str) -> Any:
        """The raw value, or ``None``."""
        return self._fields.get(name)

    def wrong(self, name: str, allowed: str) -> InvalidRequest:
        """The error for a field whose value is not allowed."""
        param = self._path + name
        shown = repr(self.get(name))[:100]
        return InvalidRequest(f"{param} must be {allowed}; it is {shown}.", param=param)

    def number(self, name: str, low: float, high: float) -> float | None:
        """A finite number within bounds."""
        value = self.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(name, "a number")
        if not math.isfinite(value) or not low <= value <= high:
            raise self.wrong(name, f"between {low:g} and {high:g}")
        return float(value)

    def integer(self, name: str, low: int, high: int = 2**63 - 1) -> int | None:
        """An integer within bounds."""
        value = self.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.wrong(name, "an integer")
        if not low <= value <= high:
            raise self.wrong(name, f"between {low} and {high}")
        return value

    def flag(self, name: str) -> bool:
        """A boolean, false by default."""
        value = self.get(name)
        if value is not None and not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return bool(value)

    def text(self, name: str) -> str | None:
        """A string."""
        value = self.get(name)
        if value is not None and not isinstance(value, str):
            raise self.wrong(name, "a string")
        return value

    def strings(self, name: str) -> tuple[str, ...]:
        """A string or a list of non-empty strings."""
        value = self.get(name)
        values = [value] if isinstance(value, str) else value or []
        if not isinstance(values, list) or not all(isinstance(s, str) and s for s in values):
            raise self.wrong(name, "a string or a list of strings")
        return tuple(values)

    def object(self, name: str) -> Body | None:
        """A nested object."""
        value = self.get(name)
        return None if value is None else Body(value, self._path + name)

    def objects(self, name: str) -> list[Body]:
        """A list of objects."""
        value = self.get(name) or []
        if not isinstance(value, list):
            raise self.wrong(name, "a list")
        return [Body(item, f"{self._path}{name}[{i}]") for i, item in enumerate(value)]

    def refuse(self, *names: str) -> None:
        """Refuse fields that would be ignored otherwise."""
        for name in names:
            if self.get(name) not in (None, False):
                raise Unsupported(
                    f"{self._path}{name} is not supported by the fake engine.",
                    param=self._path + name,
                )


def sampling(body: Body, max_tokens: Sequence[str], **more: Any) -> Sampling:
    """The sampling fields that all generating routes share. ``max_tokens`` are the names
    of that field, the one that wins first; ``more`` are the fields read elsewhere."""
    limits = (body.integer(name, 1) for name in max_tokens)
    return Sampling(
        max_tokens=next((limit for limit in limits if limit is not None), None),
        temperature=body.number("temperature", 0, 2),
        top_p=body.number("top_p", 0, 1),
        top_k=body.integer("top_k", -1),
        min_p=body.number("min_p", 0, 1),
        seed=body.integer("seed", -(2**63)),
        presence_penalty=body.number("presence_penalty", -2, 2),
        frequency_penalty=body.number("frequency_penalty", -2, 2),
        repetition_penalty=body.number("repetition_penalty", 0, 100),
        logit_bias=_logit_bias(body),
        ignore_eos=body.flag("ignore_eos"),
        **more,
    )


def _logit_bias(body: Body) -> dict[int, float]:
    fields = body.object("logit_bias")
    if fields is None:
        return {}
    try:
        return {int(name): fields.number(name, -100, 100) or 0.0 for name in body.get("logit_bias")}
    except ValueError:
        raise body.wrong("logit_bias", "an object whose keys are token ids") from None


def constraint(body: Body) -> Constraint | None:
    """From ``response_format`` or vLLM's ``structured_outputs``."""
    if (outputs := body.object("structured_outputs")) is not None:
        choice = outputs.strings("choice") or None
        schema = outputs.get("json")
        if schema is not None and not isinstance(schema, dict):
            raise outputs.wrong("json", "a JSON schema object")
        return Constraint(json_schema=schema, regex=outputs.text("regex"), choice=choice)
    wanted = body.object("response_format")
    kind = None if wanted is None else wanted.get("type")
    if wanted is None or kind == "text":
        return None
    if kind == "json_object":
        return Constraint(json_schema={})
    schema_field = wanted.object("json_schema")
    if kind != "json_schema" or schema_field is None:
        raise wanted.wrong("type", "text, json_object, or json_schema with its json_schema")
    return schema_constraint(schema_field)


def schema_constraint(holder: Body) -> Constraint:
    """From an object that has a ``schema``."""
    schema = holder.get("schema")
    if schema is not None and not isinstance(schema, dict):
        raise holder.wrong("schema", "a JSON schema object")
    return Constraint(json_schema=schema or {})


def messages(body: Body, field: str = "messages") -> tuple[Message, ...]:
    """A conversation. Only text is understood."""
    items = body.objects(field)
    if not items:
        raise body.wrong(field, "a list with at least one message")
    found = []
    for item in items:
        role = item.get("role")
        if role not in _ROLES:
            raise item.wrong("role", f"one of {', '.join(_ROLES)}")
        # A message of tool calls has no content.
        text = "" if item.get("tool_calls") and not item.get("content") else plain(item, "content")
        found.append(Message(role, text))
    return tuple(found)


def plain(item: Body, field: str) -> str:
    """Content that is a string or a list of text parts."""
    content = item.get(field)
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise item.wrong(field, "a string or a list of text parts")
    texts = []
    for part in item.objects(field):
        if part.get("type") not in _TEXT_PARTS:
            raise part.wrong("type", "text: the fake engine reads nothing else")
        texts.append(part.text("text") or "")
    return "".join(texts)


def prompts(body: Body, field: str) -> list[str]:
    """A prompt or several, each a text or a list of token ids."""
    value = body.get(field)
    if isinstance(value, str) or (isinstance(value, list) and value and _is_id(value[0])):
        value = [value]
    if not isinstance(value, list) or not value:
        raise body.wrong(field, "a string, a list of strings, or token ids")
    return [item if isinstance(item, str) else decode(ids(body, field, item)) for item in value]


def ids(body: Body, field: str, value: Any) -> list[int]:
    """A list of token ids."""
    if not isinstance(value, list) or not all(_is_id(item) for item in value):
        raise body.wrong(field, f"token ids between 0 and {EOS}")
    return value


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= EOS
