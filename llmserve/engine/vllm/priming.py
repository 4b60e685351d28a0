"""Starting to turn tokens into text, at a cost that does not depend on the prompt.

A new token's text can depend on the tokens before it (a character may be spread over
several, the first word of a text has no space before it), so the decoder is primed with
the prompt. vLLM primes it with all of it, which takes 7 ms of the event loop for 32,000
tokens; the last ones say as much. See vllm#51281.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenizers import decoders
from vllm.v1.engine.detokenizer import FastIncrementalDetokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.decoders import DecodeStream
    from vllm.v1.engine.output_processor import RequestState

_ENOUGH = 64
"""Tokens, of which some have text."""

_LONGEST_CHARACTER = 4
"""Tokens: UTF-8 has no more bytes."""


def bound_priming(state: RequestState) -> None:
    """Prime the decoder of a request that has not begun with the end of its prompt."""
    detokenizer, prompt = state.detokenizer, state.prompt_token_ids
    if (
        isinstance(detokenizer, FastIncrementalDetokenizer)
        and prompt is not None
        and len(prompt) > 2 * _ENOUGH
        and not detokenizer.token_ids
    ):
        skip = detokenizer.skip_special_tokens
        detokenizer.stream = primed(detokenizer.tokenizer, prompt, skip_special_tokens=skip)


def primed(tokenizer: Tokenizer, prompt: list[int], *, skip_special_tokens: bool) -> DecodeStream:
    """A decoder that is about to read what follows ``prompt``."""
    end = _end(tokenizer, prompt, skip_special_tokens=skip_special_tokens)
    # Primed with half a character, a decoder would say the prompt as well once it is whole.
    for half in range(_LONGEST_CHARACTER):
        whole = end[: len(end) - half]
        if not tokenizer.decode(whole, skip_special_tokens=skip_special_tokens).endswith("\ufffd"):
            stream = decoders.DecodeStream(ids=whole, skip_special_tokens=skip_special_tokens)
            for token in end[len(whole) :]:
                stream.step(tokenizer, token)
            return stream
    return decoders.DecodeStream(ids=prompt, skip_special_tokens=skip_special_tokens)


def _end(tokenizer: Tokenizer, prompt: list[int], *, skip_special_tokens: bool) -> list[int]:
    """As many of the last tokens as have any text: after nothing but special tokens, a
    decoder would take the first word for the first of the text."""
    count = _ENOUGH
    while count < len(prompt):
        end = prompt[-count:]
        if tokenizer.decode(end, skip_special_tokens=skip_special_tokens).strip("\ufffd"):
            return end
        count *= 4
    return prompt
