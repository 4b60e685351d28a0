"""Tokenize, detokenize and embeddings."""

from __future__ import annotations

import base64
import hashlib
import math
import struct

from llmserve.engine.fake.core import Core
from llmserve.engine.fake.job import render
from llmserve.engine.fake.openai.body import Body, ids, messages, prompts
from llmserve.engine.fake.tokens import decode, encode, token_text
from llmserve.engine.protocol import Context, Json
from llmserve.errors import PromptTooLong
from llmserve.types import Meter


async def tokenize(core: Core, fields: Json, context: Context, meter: Meter) -> Json:
    """``Operation.TOKENIZE``, of a prompt or of a conversation."""
    del context
    body = Body(fields)
    text = body.text("prompt")
    if text is None:
        text = render(messages(body))
    found = encode(text)
    meter.prompt_tokens = len(found)
    reply: Json = {
        "count": len(found),
        "max_model_len": core.script.max_model_len,
        "tokens": found,
    }
    if body.flag("return_token_strs"):
        reply["token_strs"] = [token_text(token) for token in found]
    return reply


async def detokenize(core: Core, fields: Json, context: Context, meter: Meter) -> Json:
    """``Operation.DETOKENIZE``."""
    del core, context, meter
    body = Body(fields)
    return {"prompt": decode(ids(body, "tokens", body.get("tokens")))}


async def embeddings(core: Core, fields: Json, context: Context, meter: Meter) -> Json:
    """``Operation.EMBEDDINGS``: unit vectors, the same for the same text."""
    body = Body(fields)
    body.refuse("dimensions")
    encoding = body.get("encoding_format")
    if encoding not in (None, "float", "base64"):
        raise body.wrong("encoding_format", "float or base64")
    texts = prompts(body, "input")
    sizes = [len(encode(text)) for text in texts]
    if max(sizes) > core.script.max_model_len:
        raise PromptTooLong(max(sizes), core.script.max_model_len, param="input")
    meter.prompt_tokens = sum(sizes)
    async with core.slot(meter, meter.prompt_tokens):
        vectors = [_vector(text, core.script.embedding_size) for text in texts]
    return {
        "object": "list",
        "model": context.model,
        "data": [
            {
                "object": "embedding",
                "index": index,
                "embedding": _base64(vector) if encoding == "base64" else vector,
            }
            for index, vector in enumerate(vectors)
        ],
        "usage": {"prompt_tokens": meter.prompt_tokens, "total_tokens": meter.prompt_tokens},
    }


def _vector(text: str, size: int) -> list[float]:
    raw = hashlib.shake_256(text.encode(errors="replace")).digest(2 * size)
    values = [value + 0.5 for value in struct.unpack(f"<{size}h", raw)]
    length = math.hypot(*values)
    return [value / length for value in values]


def _base64(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
