"""Rendering short prompts where they are: template and tokens in less time than it takes to
hand them to another thread and get them back.

vLLM renders every prompt in a thread, which is right for long ones: the event loop must
not wait for them. A short prompt takes a tenth of a millisecond, the two ways to the
thread and back take longer.
"""

from __future__ import annotations

import asyncio
import copy
from collections import deque
from typing import Any

from vllm.renderers import BaseRenderer
from vllm.tokenizers.hf import ThreadSafeHFTokenizerMixin
from vllm.utils.mistral import is_mistral_tokenizer

MOST_CHARACTERS = 1000
"""About a millisecond for a slow tokenizer."""

MOST_MESSAGES = 32

_MOST_AT_ONCE = 2
"""Prompts in one turn of the event loop."""


class InlineRenderer:
    """vLLM's renderer, at once instead of in a thread."""

    def __init__(self, renderer: BaseRenderer) -> None:
        self._renderer = copy.copy(renderer)
        self._renderer.tokenizer = _of_one_thread(renderer.tokenizer)
        self.turnstile = Turnstile(_MOST_AT_ONCE)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._renderer, name)

    async def render_chat_async(self, *args: Any, **options: Any) -> Any:
        """As the renderer's."""
        await self.turnstile.enter()
        return self._renderer.render_chat(*args, **options)

    async def render_cmpl_async(self, *args: Any, **options: Any) -> Any:
        """As the renderer's."""
        await self.turnstile.enter()
        return self._renderer.render_cmpl(*args, **options)


class Turnstile:
    """Lets so many through in each turn of the event loop. When many requests come
    together, the streams that run have their turn between them."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._entered = 0
        self._queue: deque[asyncio.Future[None]] = deque()

    async def enter(self) -> None:
        """Wait until it is this one's turn."""
        if self._entered == 0:
            asyncio.get_running_loop().call_soon(self._next_turn)
        elif self._entered >= self._most:
            waiting = asyncio.get_running_loop().create_future()
            self._queue.append(waiting)
            await waiting
            return
        self._entered += 1

    def _next_turn(self) -> None:
        self._entered = 0
        while self._queue and self._entered < self._most:
            waiting = self._queue.popleft()
            if not waiting.done():
                self._entered += 1
                waiting.set_result(None)
        if self._entered:
            asyncio.get_running_loop().call_soon(self._next_turn)


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
