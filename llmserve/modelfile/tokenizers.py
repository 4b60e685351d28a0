"""What the tokenizer files of a Hugging Face folder say."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from llmserve.modelfile.errors import ModelFileError
from llmserve.modelfile.folder import read_config
from llmserve.modelfile.jsontext import get_text
from llmserve.modelfile.source import Store
from llmserve.modelfile.templates import MAX_TEMPLATE, chat_template
from llmserve.modelfile.types import ChatTemplate, Problem, SpecialToken, Tokenizer

CONFIG = "tokenizer_config.json"
_TEMPLATE = "chat_template.jinja"
_TOKENIZER = "tokenizer.json"
_LOOK = 1 << 18
_ROLES = ("bos", "eos", "pad", "unk", "sep", "cls", "mask")
_ADDED = re.compile(
    rb'\{\s*"id":\s*([0-9]{1,9}),[^{}]{0,200}?"content":\s*("(?:[^"\\\x00-\x1f]++|\\.){0,200}+")'
)


def read_tokenizer(
    store: Store, model: Mapping[str, Any], config: Mapping[str, Any]
) -> Tokenizer | None:
    """``model`` is ``config.json``, ``config`` is ``tokenizer_config.json``."""
    sizes = store.sizes()
    if not config and _TOKENIZER not in sizes:
        return None
    ids = _added(config) or _added_in_tokenizer(store, sizes)
    special = {}
    for role in _ROLES:
        text = _token_text(config.get(f"{role}_token"))
        number = ids.get(text) if text is not None else None
        if number is None:
            number = _token_id(model.get(f"{role}_token_id"))
        if text is None and number is not None:
            text = next((each for each, index in ids.items() if index == number), None)
        if text is not None or number is not None:
            special[role] = SpecialToken(number, text)
    add_bos, add_eos = config.get("add_bos_token"), config.get("add_eos_token")
    return Tokenizer(
        kind=get_text(config, "tokenizer_class"),
        tokens=None,
        special=special,
        add_bos=add_bos if isinstance(add_bos, bool) else None,
        add_eos=add_eos if isinstance(add_eos, bool) else None,
    )


def read_templates(
    store: Store, config: Mapping[str, Any], problems: list[Problem]
) -> tuple[ChatTemplate, ...]:
    """The file of its own first: where there is one, it is the one in use."""
    sizes = store.sizes()
    if _TEMPLATE in sizes:
        source = store.open(_TEMPLATE)
        try:
            text = source.read(0, MAX_TEMPLATE).decode(errors="backslashreplace")
        finally:
            source.close()
        return (chat_template("default", text),)
    found = config.get("chat_template")
    if found is None and "chat_template.json" in sizes:
        found = read_config(store, "chat_template.json", problems).get("chat_template")
    if isinstance(found, str):
        return (chat_template("default", found),)
    named = [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []
    return tuple(
        chat_template(str(each.get("name")), each["template"])
        for each in named
        if isinstance(each.get("template"), str)
    )


def _token_text(value: object) -> str | None:
    """A text, or an object with one."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _token_id(value: object) -> int | None:
    """A number, or a list of them of which the first counts."""
    if isinstance(value, list) and value:
        value = value[0]
    return value if type(value) is int and value >= 0 else None


def _added(config: Mapping[str, Any]) -> dict[str, int]:
    """text → id, from ``added_tokens_decoder``."""
    decoder = config.get("added_tokens_decoder")
    found: dict[str, int] = {}
    for key, value in decoder.items() if isinstance(decoder, dict) else ():
        text = _token_text(value)
        if text is not None and key.isascii() and key.isdigit() and len(key) < 10:
            found[text] = int(key)
    return found


def _added_in_tokenizer(store: Store, sizes: Mapping[str, int]) -> dict[str, int]:
    """The same, from the beginning of ``tokenizer.json``: the whole takes too long."""
    if _TOKENIZER not in sizes:
        return {}
    try:
        source = store.open(_TOKENIZER)
    except ModelFileError:
        return {}
    try:
        data = source.read(0, _LOOK)
    finally:
        source.close()
    found: dict[str, int] = {}
    for number, content in _ADDED.findall(data):
        try:
            found.setdefault(json.loads(content), int(number))
        except ValueError:
            continue
    return found
