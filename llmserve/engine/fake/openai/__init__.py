"""The OpenAI and Anthropic face of the fake engine: small, and true to the schemas."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TypeAlias

from llmserve.engine.fake.core import Core
from llmserve.engine.fake.openai import chat, completions, messages, responses, tokens
from llmserve.engine.protocol import Context, Event, Json
from llmserve.errors import NotImplementedHere
from llmserve.types import Meter, Operation

Reply: TypeAlias = Json | AsyncGenerator[Event, None]
Handler: TypeAlias = Callable[[Core, Json, Context, Meter], Awaitable[Reply]]

# Operation → the task that the model must have for it (``None``: any model), handler.
_HANDLERS: dict[Operation, tuple[str | None, Handler]] = {
    Operation.CHAT: ("generate", chat.answer),
    Operation.COMPLETION: ("generate", completions.answer),
    Operation.RESPONSES: ("generate", responses.answer),
    Operation.MESSAGES: ("generate", messages.answer),
    Operation.COUNT_TOKENS: ("generate", messages.count_tokens),
    Operation.EMBEDDINGS: ("embed", tokens.embeddings),
    Operation.TOKENIZE: (None, tokens.tokenize),
    Operation.DETOKENIZE: (None, tokens.detokenize),
}


async def answer(
    core: Core, operation: Operation, body: Json, context: Context, meter: Meter
) -> Json | AsyncGenerator[Event, None]:
    """Answer one request; the errors are those of ``Engine.openai``."""
    core.check()
    task, handler = _HANDLERS.get(operation, (None, None))
    if handler is None or (task is not None and task not in core.script.tasks):
        raise NotImplementedHere(f"This model cannot do {operation.value}.")
    return await handler(core, body, context, meter)
