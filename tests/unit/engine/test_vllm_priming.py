"""A decoder that knows the end of the prompt says what one says that knows all of it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.decoders import DecodeStream

pytest.importorskip("vllm")

from llmserve.engine.vllm.priming import primed

LETTERS = "abcdeé "


def byte_level() -> Tokenizer:
    """As GPT-2's: a token is bytes, a character can be several tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["Ġthe", "Ġfox", "ing", "æĿ±", "ðŁĻ"]
    vocabulary = {piece: number for number, piece in enumerate([*alphabet, *words])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True)])
    return tokenizer


def sentence_piece() -> Tokenizer:
    """As Llama 2's: spaces belong to the words, the first one is dropped, and what is in no
    vocabulary is written as bytes."""
    raw = [f"<0x{byte:02X}>" for byte in range(256)]
    pieces = ["▁", "▁the", "▁fox", "ing", "東", "🙂", *LETTERS.strip()]
    vocabulary = {piece: number for number, piece in enumerate([*raw, *pieces])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens([AddedToken("<s>", special=True)])
    return tokenizer


TOKENIZERS = {"byte level": byte_level(), "sentence piece": sentence_piece()}


def said(stream: DecodeStream, tokenizer: Tokenizer, tokens: list[int]) -> list[Any]:
    texts: list[Any] = []
    for token in tokens:
        try:
            texts.append(stream.step(tokenizer, token))
        except Exception as error:
            texts.append(str(error)[:20])
            break
    return texts


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_the_end_of_a_prompt_is_enough(name: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[name]
    size = tokenizer.get_vocab_size()
    special = size - 1
    tokens = st.integers(0, size - 1)
    prompt = data.draw(st.lists(tokens, min_size=1, max_size=40)) * 8
    prompt += data.draw(st.sampled_from([[], [special] * 70, [special] * 300]))
    prompt += data.draw(st.lists(tokens, max_size=6))
    answer = data.draw(st.lists(tokens, max_size=20))
    skip = data.draw(st.booleans())
    ours = primed(tokenizer, prompt, skip_special_tokens=skip)
    whole = DecodeStream(ids=prompt, skip_special_tokens=skip)
    if tokenizer.decode(prompt, skip_special_tokens=skip).endswith("\ufffd"):
        # Half a character at the end: the decoder that knows everything would say all of it.
        return
    assert said(ours, tokenizer, answer) == said(whole, tokenizer, answer)


def test_half_a_character_at_the_end_does_not_bring_the_prompt_back() -> None:
    tokenizer = TOKENIZERS["sentence piece"]
    character = list("東".encode())
    fox = tokenizer.token_to_id("▁fox")
    ours = primed(tokenizer, [fox] * 100 + character[:2], skip_special_tokens=True)
    assert said(ours, tokenizer, [*character[2:], fox]) == ["東", " fox"]
