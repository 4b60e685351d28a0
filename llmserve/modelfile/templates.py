"""Chat templates are programs. They are never run here, only read."""

from __future__ import annotations

import re

from llmserve.modelfile.types import ChatTemplate

MAX_TEMPLATE = 1_000_000

_UNUSUAL = (
    (
        re.compile(r"__[a-z]+__|\b(?:mro|subclasses|func_globals|gi_frame|cr_frame)\b"),
        "reaches into Python objects",
    ),
    (
        re.compile(r"\b(?:os|sys|subprocess|builtins|importlib|socket|shutil)\s*\."),
        "names a Python module",
    ),
    (
        re.compile(r"\b(?:eval|exec|open|compile|getattr|setattr|globals|locals)\s*\("),
        "calls a Python built-in",
    ),
    (re.compile(r"\|\s*attr\b"), "looks up attributes by computed names (attr)"),
    (re.compile(r"\{%[-+]?\s*(?:include|import|from|extends)\b"), "loads another template"),
    (
        re.compile(r"\b(?:cycler|joiner|lipsum|self|config|request)\s*[.\[(]"),
        "uses an object that exploits start from",
    ),
    (re.compile(r"https?://|\bfile://"), "contains a web address"),
)


def chat_template(name: str, text: str) -> ChatTemplate:
    """``text`` with a warning for each thing in it that chat templates do not need.

    A warning is a reason to look, no proof; that there is none proves nothing either.
    """
    text = text[:MAX_TEMPLATE]
    code = " ".join(re.findall(r"\{[{%].*?[%}]\}", text, re.DOTALL))
    warnings = []
    for pattern, what in _UNUSUAL:
        if found := pattern.search(code):
            warnings.append(f"The template {what}: {found.group()[:60]!a}.")
    return ChatTemplate(name, text, tuple(warnings))
