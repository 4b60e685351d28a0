"""Plain prompts to tokens, with what never changes found out once.

vLLM finds the template, its variables, the format of contents and the tokenizer's options
anew for each request, and hands one text to the tokenizer as a batch with everything that
a batch may need. Here the compiled template is kept, and the tokenizer gives nothing but
ids. ``make_prompts`` compares both on the model's own template before it trusts this one.

Short texts are encoded where they are, long ones in threads of our own. All use one
tokenizer, which several threads may read and none may change meanwhile: it would wait for
the longest text. So it is changed only by the event loop, and only while ``busy`` is false.

The slow twins are ``HfRenderer.render_messages`` and ``BaseRenderer.tokenize_prompts`` in
vLLM; whatever is not a text of a known role takes them.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

from transformers import TokenizersBackend
from transformers.utils.chat_template_utils import _compile_jinja_template
from vllm.exceptions import VLLMClientError
from vllm.renderers import ChatParams, TokenizeParams
from vllm.renderers.hf import resolve_chat_template, resolve_chat_template_content_format
from vllm.renderers.inputs.preprocess import parse_model_prompt

from llmserve.engine.vllm.inline import are_short

log = logging.getLogger(__name__)

_ROLES = frozenset(("system", "user", "assistant"))
_BILLING_HEADER = "x-anthropic-billing-header"
"""vLLM takes a line that begins so out of system messages."""

_PROBES: tuple[tuple[tuple[str, str], ...], ...] = (
    (("user", "Hello, wörld! 東京 🙂"),),
    (("system", "Be brief.\n"), ("user", "  1 + 1\t= ?  ")),
    (("user", "a"), ("assistant", "b\n\n"), ("user", "<|im_end|></s>{{ c }}")),
    (("system", "s"), ("user", "u"), ("assistant", "a"), ("user", "\n")),
)


class Counted(NamedTuple):
    """How many tokens a prompt has; ``ids`` is ``None`` where they are more than fit."""

    tokens: int
    ids: list[int] | None


class Prompts:
    """Ids of the tokens of a prompt, or ``None`` for what is left to vLLM."""

    def __init__(
        self,
        tokenizer: TokenizersBackend,
        render: Callable[[list[Any]], str] | None,
        threads: int = 1,
    ) -> None:
        self._backend = tokenizer._tokenizer
        self._render = render
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="prompts")
        self._closed = False
        self._aside: set[Future[Counted | None]] = set()

    @property
    def busy(self) -> bool:
        """Whether a thread reads the tokenizer, so that nobody may change it."""
        return bool(self._aside)

    def close(self) -> None:
        """Begin no more long prompts: those that wait are left to vLLM, which knows that the
        engine is gone."""
        self._closed = True
        self._threads.shutdown(wait=False)

    def chat(self, messages: Any) -> list[int] | None:
        """Of a short conversation: messages of a role and a text, and nothing else in them."""
        if self._render is None or (texts := _plain_texts(messages)) is None:
            return None
        if not are_short(texts):
            return None
        try:
            text = self._render(messages)
        except Exception:  # A template refuses a conversation by raising anything it likes.
            return None  # vLLM says what is wrong with it.
        return self._encode(text, special=False)

    def text(self, prompt: Any) -> list[int] | None:
        """Of a short text, with the tokenizer's own special tokens around it."""
        return self._encode(prompt, special=True) if prompt and are_short([prompt]) else None

    async def long_chat(self, messages: Any, most: int, most_chars: int) -> Counted | None:
        """As ``chat``, of a long conversation, in a thread. More than ``most``
        tokens are counted only, more than ``most_chars`` characters are left to vLLM, which
        refuses them. Raises what the template raises."""
        render = self._render
        if render is None or (texts := _plain_texts(messages)) is None or are_short(texts):
            return None
        return await self._in_thread(lambda: render(messages), False, most, most_chars)

    async def long_text(self, prompt: str, most: int, most_chars: int) -> Counted | None:
        """As ``text``, of a long one."""
        if are_short([prompt]):
            return None
        return await self._in_thread(lambda: prompt, True, most, most_chars)

    def _encode(self, text: str, *, special: bool) -> list[int]:
        self._take_limits_off()
        (encoding,) = self._backend.encode_batch_fast([text], add_special_tokens=special)
        ids: list[int] = encoding.ids
        return ids

    def _take_limits_off(self) -> None:
        """vLLM shares the tokenizer, and leaves the limits of its last prompt behind."""
        if self._backend.truncation is not None:
            self._backend.no_truncation()
        if self._backend.padding is not None:
            self._backend.no_padding()

    async def _in_thread(
        self, render: Callable[[], str], special: bool, most: int, most_chars: int
    ) -> Counted | None:
        if self._closed:
            return None

        def counted() -> Counted | None:
            if self._closed:
                return None
            text = render()
            if len(text) > most_chars:
                return None
            (encoding,) = self._backend.encode_batch_fast([text], add_special_tokens=special)
            # The list is made only where it is used: it takes milliseconds in which no other
            # thread runs Python.
            count = len(encoding)
            return Counted(count, encoding.ids if count <= most else None)

        self._take_limits_off()
        job = self._threads.submit(counted)
        self._aside.add(job)
        # Not when the request is given up, but when the thread has done with it.
        job.add_done_callback(self._aside.discard)
        return await asyncio.wrap_future(job)


def _plain_texts(messages: Any) -> list[str] | None:
    """The texts of a conversation that has nothing else."""
    if type(messages) is not list or not messages:
        return None
    texts = []
    for message in messages:
        if len(message) != 2 or message.get("role") not in _ROLES:
            return None
        text = message.get("content")
        if not text or type(text) is not str or text.startswith(_BILLING_HEADER):
            return None
        texts.append(text)
    return texts


def make_prompts(renderer: Any, online: Any) -> Prompts | None:
    """For the renderer that works on the event loop, and vLLM's object for rendering
    requests. ``None`` where the two ways do not agree."""
    model = renderer.model_config
    tokenizer = renderer.tokenizer
    if (
        not isinstance(tokenizer, TokenizersBackend)
        or model.is_multimodal_model
        or model.is_encoder_decoder
        or model.enable_prompt_embeds
        or online.use_harmony
    ):
        return None
    texts = _trusted(lambda: _texts(tokenizer, renderer))
    chats = texts and _trusted(lambda: _chats(tokenizer, renderer, online))
    return chats or texts


def _trusted(make: Callable[[], Prompts | None]) -> Prompts | None:
    """A tokenizer or a template that vLLM can live with must not prevent a start."""
    try:
        return make()
    except Exception:
        log.debug("short prompts are left to vLLM", exc_info=True)
        return None


def _texts(tokenizer: TokenizersBackend, renderer: Any) -> Prompts | None:
    prompts = Prompts(tokenizer, None, renderer.model_config.renderer_num_workers)
    return prompts if _agree_on_text(prompts, renderer) else None


def _chats(tokenizer: TokenizersBackend, renderer: Any, online: Any) -> Prompts | None:
    model = renderer.model_config
    render = _chat_renderer(tokenizer, model, online)
    prompts = Prompts(tokenizer, render, model.renderer_num_workers)
    return prompts if _agree_on_chats(prompts, renderer, online) else None


def _chat_renderer(
    tokenizer: TokenizersBackend, model: Any, online: Any
) -> Callable[[list[Any]], str] | None:
    """The model's chat template, compiled."""
    source = resolve_chat_template(
        tokenizer, chat_template=online.chat_template, tools=None, model_config=model
    )
    if source is None:
        return None
    style = resolve_chat_template_content_format(
        online.chat_template,
        None,
        online.chat_template_content_format,
        tokenizer,
        model_config=model,
    )
    named = inspect.signature(tokenizer.apply_chat_template).parameters
    defaults = online.default_chat_template_kwargs or {}
    variables = {
        **tokenizer.special_tokens_map,
        **{name: value for name, value in defaults.items() if name not in named},
        "tools": None,
        "documents": None,
        "add_generation_prompt": True,
    }
    render = _compile_jinja_template(source).render

    def of_texts(messages: list[Any]) -> str:
        # As vLLM makes them: a template can show the order of the fields.
        texts = [{"role": m["role"], "content": m["content"]} for m in messages]
        return str(render(variables, messages=texts))

    def of_parts(messages: list[Any]) -> str:
        parts = [
            {"role": m["role"], "content": [{"type": "text", "text": m["content"]}]}
            for m in messages
        ]
        return str(render(variables, messages=parts))

    return of_parts if style == "openai" else of_texts


def _agree_on_text(prompts: Prompts, renderer: Any) -> bool:
    unlimited = TokenizeParams(max_total_tokens=None)
    for probe in _PROBES:
        text = probe[-1][1]
        parsed = parse_model_prompt(renderer.model_config, text)
        (expected,) = renderer.render_cmpl([parsed], unlimited)
        if prompts.text(text) != expected["prompt_token_ids"]:
            return False
    return True


def _agree_on_chats(prompts: Prompts, renderer: Any, online: Any) -> bool:
    """On some conversations at least, and on none differently. A template may refuse some
    of them: many want the roles in turns."""
    defaults = {"add_generation_prompt": True, "continue_final_message": False, "tokenize": False}
    params = ChatParams(
        chat_template=online.chat_template,
        chat_template_content_format=online.chat_template_content_format,
        chat_template_kwargs=(online.default_chat_template_kwargs or {}) | defaults,
    )
    unlimited = TokenizeParams(max_total_tokens=None, add_special_tokens=False)
    agreed = 0
    for probe in _PROBES:
        messages = [{"role": role, "content": text} for role, text in probe]
        ours = prompts.chat(messages)
        try:
            _, (expected,) = renderer.render_chat([messages], params, unlimited)
        except (ValueError, VLLMClientError):
            continue
        if ours != expected["prompt_token_ids"]:
            return False
        agreed += 1
    return agreed > 0
