"""The constraints in a request body: what the engine would not keep to is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from llmserve.engine.protocol import Json
from llmserve.engine.vllm.schemas import check_enforced, check_pattern
from llmserve.errors import InvalidRequest

_SCHEMA_PATHS = (
    ("response_format", "json_schema", "schema"),
    ("text", "format", "schema"),
    ("output_config", "format", "schema"),
    ("structured_outputs", "json"),
)


def enforced(body: Json) -> Json:
    """The body, with a schema given as text made an object. Raises ``Unsupported`` and
    ``InvalidRequest``, naming the field, for a constraint that the answer might break."""
    outputs = body.get("structured_outputs")
    if isinstance(outputs, dict) and isinstance(outputs.get("json"), str):
        body = body | {"structured_outputs": outputs | {"json": _parsed(outputs["json"])}}
    for path in _SCHEMA_PATHS:
        if (schema := _at(body, path)) is not None:
            check_enforced(schema, ".".join(path))
    if isinstance(regex := _at(body, ("structured_outputs", "regex")), str):
        check_pattern(regex, "structured_outputs.regex")
    for path_text, schema in _strict_tools(body):
        check_enforced(schema, path_text)
    return body


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidRequest(
            "structured_outputs.json is not a JSON schema.", param="structured_outputs.json"
        ) from None


def _at(body: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        body = body.get(name) if isinstance(body, dict) else None
    return body


def _strict_tools(body: Json) -> Iterator[tuple[str, Any]]:
    """The schemas of the tools whose arguments are constrained, with their paths."""
    for index, tool in enumerate(body.get("tools") or ()):
        if not isinstance(tool, dict):
            continue
        for holder, path in ((tool, f"tools[{index}]"), (tool.get("function"), "")):
            if isinstance(holder, dict) and holder.get("strict"):
                for name in ("parameters", "input_schema"):
                    if name in holder:
                        yield f"{path or f'tools[{index}].function'}.{name}", holder[name]
