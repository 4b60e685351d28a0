"""Rendering short prompts where they are: template and tokens in less time than it takes to
hand them to another thread and get them back.

vLLM renders every prompt in a thread, which is right for long ones: the event loop must
not wait for them. A short prompt takes a tenth of a millisecond, the two ways to the
thread and back take longer.
"""

from __future__ import annotations

import copy
from typing import Any

from vllm.renderers import BaseRenderer
from vllm.tokenizers.hf import ThreadSafeHFTokenizerMixin
from vllm.utils.mistral import is_mistral_tokenizer

MOST_CHARACTERS = 1000
"""About a millisecond for a slow tokenizer."""

MOST_MESSAGES = 32


class InlineRenderer:
    """vLLM's renderer, at once instead of in a thread."""

    def __init__(self, renderer: BaseRenderer) -> None:
        self._renderer = copy.copy(renderer)
        self._renderer.tokenizer = _of_one_thread(renderer.tokenizer)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._renderer, name)

    async def render_chat_async(self, *args: Any, **options: Any) -> Any:
        """As the renderer's."""
        return self._renderer.render_chat(*args, **options)

    async def render_cmpl_async(self, *args: Any, **options: Any) -> Any:
        """As the renderer's."""
        return self._renderer.render_cmpl(*args, **options)


def _of_one_thread(tokenizer: Any) -> Any:
    """A tokenizer that no other thread uses. vLLM's is a pool of copies, one for each
    caller; what it makes them from is nobody's, and pickling names it."""
    if isinstance(tokenizer, ThreadSafeHFTokenizerMixin):
        _, (original, *_) = tokenizer.__reduce__()
        return original
    return copy.deepcopy(tokenizer)


def make_inline(renderer: BaseRenderer) -> InlineRenderer | None:
    """``None`` for tokenizers that cannot be copied."""
    if renderer.tokenizer is None or is_mistral_tokenizer(renderer.tokenizer):
        return None
    return InlineRenderer(renderer)


def is_short(request: Any) -> bool:
    """Whether a chat or completion request of vLLM's is short and nothing but text."""
    messages = getattr(request, "messages", None)
    if messages is None:
        prompt = request.prompt
        return isinstance(prompt, str) and len(prompt) <= MOST_CHARACTERS
    if request.tools or request.chat_template or request.chat_template_kwargs:
        return False
    return are_short([message.get("content") for message in messages])


def are_short(texts: list[Any]) -> bool:
    """Whether these are few and short texts."""
    return (
        len(texts) <= MOST_MESSAGES
        and all(type(text) is str for text in texts)
        and sum(map(len, texts)) <= MOST_CHARACTERS
    )
