"""Checks of plain prompts: strings and token ids."""

from __future__ import annotations

from typing import Any

from llmserve.http.openai_fields.values import MAX_INT32, Check, wrong
from llmserve.settings import LimitSettings

# Prompts of one request are as many requests to the engine.
MAX_PROMPTS = 128
MAX_EMBEDDING_INPUTS = 2048


def prompts(most: int) -> Check:
    """A string, a list of token ids, or a list of either; nothing of it empty."""

    def check(value: Any, path: str, limits: LimitSettings) -> None:  # noqa: ARG001
        if isinstance(value, str):
            if not value:
                raise wrong(path, value, "a string that is not empty")
            return
        if not isinstance(value, list) or not value:
            raise wrong(path, value, "a string, an array of strings, or token ids")
        if _is_token_id(value[0]):
            token_ids(value, path)
            return
        if len(value) > most:
            raise wrong(path, value, f"an array of at most {most} prompts")
        for index, entry in enumerate(value):
            if isinstance(entry, list) and entry and isinstance(value[0], list):
                token_ids(entry, f"{path}[{index}]")
            elif not (isinstance(entry, str) and entry and isinstance(value[0], str)):
                allowed = "a string that is not empty, or an array of token ids, as the first one"
                raise wrong(f"{path}[{index}]", entry, allowed)

    return check


def _is_token_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def token_ids(value: list[Any], path: str) -> None:
    """All of them integers from 0. A body holds millions of them, so the whole is looked
    at first, in C, and each one only to say which is wrong."""
    if set(map(type, value)) <= {int} and (not value or 0 <= min(value) <= max(value) <= MAX_INT32):
        return
    for index, entry in enumerate(value):
        if not _is_token_id(entry) or not 0 <= entry <= MAX_INT32:
            raise wrong(f"{path}[{index}]", entry, f"a token id (0 to {MAX_INT32})")


def token_list(value: Any, path: str, limits: LimitSettings) -> None:  # noqa: ARG001
    """Token ids, none or many."""
    if not isinstance(value, list):
        raise wrong(path, value, "an array of token ids")
    token_ids(value, path)
