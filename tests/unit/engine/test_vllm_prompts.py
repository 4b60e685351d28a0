"""Short prompts become the tokens that vLLM's renderer makes of them, or are left to it."""

from __future__ import annotations

import asyncio
import random
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.config import ModelConfig, VllmConfig
from vllm.exceptions import VLLMClientError
from vllm.renderers import ChatParams, TokenizeParams, renderer_from_config

from llmserve.engine.vllm.inline import InlineRenderer, make_inline
from llmserve.engine.vllm.prompts import Prompts, make_prompts

LOOP = "{% for m in messages %}"
TEMPLATES: dict[str, str | None] = {
    "the model's own": None,
    "parts": LOOP + "[{{ m.role }}]{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}",
    "special tokens": "{{ bos_token }}" + LOOP + "{{ m.content }}{{ eos_token }}{% endfor %}",
    "trimmed": LOOP + "\n  {%- if true %}\n {{ m['content'] | trim }}\n{% endif %}\n{% endfor %}",
    "in turns only": LOOP
    + "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    + "{{ raise_exception('roles must alternate') }}{% endif %}{{ m.content }}{% endfor %}",
    "a default": "{% if thinking %}<think>{% endif %}" + LOOP + "{{ m.content }}{% endfor %}",
    "asks for tools": "{% if tools %}T{% endif %}{% if documents %}D{% endif %}"
    + "{% if add_generation_prompt %}G{% endif %}"
    + LOOP
    + "{{ m | tojson }}{% endfor %}",
}
CHATS: list[list[tuple[str, str]]] = [
    [("user", "Hello 🙂")],
    [("system", " Be brief.\n"), ("user", "<|im_end|>{{ x }}")],
    [("user", "a"), ("assistant", "b"), ("user", "c\n\n")],
    [("assistant", "first")],
    [("system", "x-anthropic"), ("user", "billing-header")],
    [("user", "\u200b \t"), ("user", "again")],
]


@pytest.fixture(scope="module")
def inline(tiny_folder: Path) -> InlineRenderer:
    config = VllmConfig(model_config=ModelConfig(model=str(tiny_folder)))
    found = make_inline(renderer_from_config(config))
    assert found is not None
    return found


def online(template: str | None, **defaults: Any) -> Any:
    return SimpleNamespace(
        chat_template=template,
        chat_template_content_format="auto",
        default_chat_template_kwargs=defaults,
        use_harmony=False,
    )


def by_vllm(inline: InlineRenderer, settings: Any, messages: list[dict[str, str]]) -> Any:
    """The tokens, or that it refuses."""
    params = ChatParams(
        chat_template=settings.chat_template,
        chat_template_kwargs=settings.default_chat_template_kwargs
        | {"add_generation_prompt": True, "continue_final_message": False, "tokenize": False},
    )
    unlimited = TokenizeParams(max_total_tokens=None, add_special_tokens=False)
    try:
        _, (prompt,) = inline.render_chat([messages], params, unlimited)
    except (ValueError, VLLMClientError):
        return None
    return prompt["prompt_token_ids"]


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_conversation_is_read_as_vllm_reads_it(inline: InlineRenderer, name: str) -> None:
    settings = online(TEMPLATES[name], **({"thinking": True} if name == "a default" else {}))
    prompts = make_prompts(inline, settings)
    assert prompts is not None
    expected = []
    for chat in CHATS:
        messages = [{"role": role, "content": text} for role, text in chat]
        expected.append(by_vllm(inline, settings, messages))
        assert prompts.chat(messages) == expected[-1]
        turned = [dict(reversed(message.items())) for message in messages]
        assert prompts.chat(turned) == expected[-1]
    assert any(expected), "the template refuses everything"


def test_where_the_ways_differ_vllms_is_the_only_one(inline: InlineRenderer) -> None:
    """Documents by default are nothing that this one knows."""
    settings = online(TEMPLATES["asks for tools"], documents=[{"title": "t", "text": "x"}])
    prompts = make_prompts(inline, settings)
    assert prompts is not None
    assert prompts.chat([{"role": "user", "content": "Hello"}]) is None
    assert prompts.text("Hello")


def test_a_template_with_a_mistake_does_not_prevent_a_start(inline: InlineRenderer) -> None:
    prompts = make_prompts(inline, online("{% for m in messages %}{{ m.content"))
    assert prompts is not None
    assert prompts.chat([{"role": "user", "content": "Hello"}]) is None
    assert prompts.text("Hello")


def test_models_of_other_kinds_are_vllms(inline: InlineRenderer) -> None:
    settings = online(None)
    settings.use_harmony = True
    assert make_prompts(inline, settings) is None


@pytest.mark.parametrize(
    "messages",
    [
        [],
        "Hello",
        [{"role": "user"}],
        [{"role": "user", "content": "Hi", "name": "Ann"}],
        [{"role": "developer", "content": "Hi"}],
        [{"role": "user", "content": ["Hi"]}],
        [{"role": "user", "content": ""}],
        [{"role": "user", "content": "x" * 1001}],
        [{"role": "user", "content": "x"}] * 33,
    ],
    ids=lambda value: str(value)[:40],
)
def test_anything_else_is_left_to_vllm(inline: InlineRenderer, messages: Any) -> None:
    prompts = make_prompts(inline, online(None))
    assert isinstance(prompts, Prompts)
    assert prompts.chat(messages) is None
    assert prompts.text("") is None
    assert prompts.text("x" * 1001) is None


LIMITS = (10**6, 10**6)


async def begin_long(prompts: Prompts) -> tuple[asyncio.Future[Any], threading.Event]:
    """A long prompt that is being read, until the event is set."""
    begun, read_on = threading.Event(), threading.Event()

    def render() -> str:
        begun.set()
        return str(read_on.wait(60))

    reading = asyncio.ensure_future(prompts._in_thread(render, False, *LIMITS))
    assert await asyncio.to_thread(begun.wait, 60)
    return reading, read_on


@pytest.mark.anyio
@pytest.mark.parametrize("seed", range(8))
async def test_a_long_conversation_is_read_as_vllm_reads_it(
    inline: InlineRenderer, seed: int
) -> None:
    settings = online(None)
    prompts = make_prompts(inline, settings)
    assert prompts is not None
    chance = random.Random(seed)  # noqa: S311  # texts
    parts = ("word ", "\n\n", "  ", "東京", "🙂", "é\u0301", "<|im_end|>", "\u200b", "0", "{{ x }}")
    messages = [
        {
            "role": chance.choice(("user", "assistant")),
            "content": "".join(chance.choices(parts, k=k)),
        }
        for k in (chance.randint(500, 2_000) for _ in range(chance.randint(1, 60)))
    ]
    expected = by_vllm(inline, settings, messages)
    counted = await prompts.long_chat(messages, *LIMITS)
    assert counted == (len(expected), expected)
    assert await prompts.long_chat(messages, len(expected) - 1, 10**6) == (len(expected), None)
    assert await prompts.long_chat(messages, 10**6, 3) is None
    assert not prompts.busy


@pytest.mark.anyio
async def test_a_long_text_that_is_given_up_is_read_to_its_end(inline: InlineRenderer) -> None:
    """Only then may anybody change the tokenizer."""
    prompts = make_prompts(inline, online(None))
    assert prompts is not None
    given_up, read_on = await begin_long(prompts)
    given_up.cancel()
    await asyncio.wait([given_up])
    assert given_up.cancelled()
    assert prompts.busy
    read_on.set()
    await asyncio.to_thread(prompts._threads.shutdown)
    assert not prompts.busy


@pytest.mark.anyio
async def test_what_waits_when_the_engine_ends_is_left_to_vllm(inline: InlineRenderer) -> None:
    prompts = make_prompts(inline, online(None))
    assert prompts is not None
    first, read_on = await begin_long(prompts)
    second = asyncio.ensure_future(prompts.long_text("word " * 1000, *LIMITS))
    await asyncio.sleep(0)
    prompts.close()
    read_on.set()
    assert await first
    assert await second is None
    assert await prompts.long_text("word " * 1000, *LIMITS) is None


@pytest.mark.anyio
async def test_a_short_prompt_is_not_read_as_a_long_one(inline: InlineRenderer) -> None:
    """It was not plain, or not right; it must not wait for long ones to be told so."""
    prompts = make_prompts(inline, online(None))
    assert prompts is not None
    assert await prompts.long_text("word", *LIMITS) is None
    assert await prompts.long_chat([{"role": "user", "content": "word"}], *LIMITS) is None
