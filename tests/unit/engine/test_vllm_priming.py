"""A decoder that knows the end of the prompt says what one says that knows all of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.decoders import DecodeStream

pytest.importorskip("vllm")

from transformers import PreTrainedTokenizerFast
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.detokenizer import FastIncrementalDetokenizer

from llmserve.engine.vllm.priming import bound_priming, primed

LETTERS = "abcdeé "
CHARACTERS = "Жह🚀"
"""In no vocabulary here: they are two, three and four tokens."""


def byte_level() -> Tokenizer:
    """As GPT-2's: a token is bytes, a character can be several tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["Ġthe", "Ġfox", "ing", "æĿ±", "ðŁĻ"]
    vocabulary = {piece: number for number, piece in enumerate([*alphabet, *words])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
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


def any_tokens(tokenizer: Tokenizer, **sizes: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, tokenizer.get_vocab_size() - 1), **sizes)


def texts(tokenizer: Tokenizer, **sizes: int) -> st.SearchStrategy[list[int]]:
    """Tokens of whole characters."""
    text = st.text(CHARACTERS + "a", **sizes)
    return text.map(lambda text: list(tokenizer.encode(text).ids))


def ended(tokenizer: Tokenizer) -> st.SearchStrategy[list[int]]:
    """Prompts of any tokens, but for the last one: that is text, and no half of a character."""
    word = tokenizer.token_to_id("ing")
    return any_tokens(tokenizer, min_size=1, max_size=40).map(lambda tokens: [*tokens * 8, word])


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_the_end_of_a_prompt_is_enough(name: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[name]
    special = tokenizer.get_vocab_size() - 1
    text = texts(tokenizer, min_size=1, max_size=40).map(lambda tokens: tokens * 8)
    prompt = data.draw(ended(tokenizer) | text)
    prompt += data.draw(st.sampled_from([[], [special] * 70, [special] * 300]))
    prompt += data.draw(texts(tokenizer, max_size=6))
    answer = data.draw(any_tokens(tokenizer, max_size=20))
    skip = data.draw(st.booleans())
    ours = primed(tokenizer, prompt, skip_special_tokens=skip)
    whole = DecodeStream(ids=prompt, skip_special_tokens=skip)
    assert said(ours, tokenizer, answer) == said(whole, tokenizer, answer)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_half_a_character_at_the_end_is_said_with_its_other_half(
    name: str, data: st.DataObject
) -> None:
    """As if the answer had begun with it. The decoder that knows all of the prompt would say
    all of it again."""
    tokenizer = TOKENIZERS[name]
    before = data.draw(ended(tokenizer))
    character = data.draw(st.sampled_from(CHARACTERS))
    tokens = tokenizer.encode(character).ids
    cut = data.draw(st.integers(1, len(tokens) - 1))
    half, rest = tokens[:cut], tokens[cut:]
    more = data.draw(any_tokens(tokenizer, max_size=20))
    skip = data.draw(st.booleans())
    for answer in (rest + more, more):
        ours = primed(tokenizer, before + half, skip_special_tokens=skip)
        begun = DecodeStream(ids=before, skip_special_tokens=skip)
        assert said(begun, tokenizer, half) == [None] * cut
        assert said(ours, tokenizer, answer) == said(begun, tokenizer, answer)
    ours = primed(tokenizer, before + half, skip_special_tokens=skip)
    assert said(ours, tokenizer, rest) == [None] * (len(rest) - 1) + [character]


def test_half_a_character_at_the_end_does_not_bring_the_prompt_back() -> None:
    tokenizer = TOKENIZERS["sentence piece"]
    character = list("東".encode())
    fox = tokenizer.token_to_id("▁fox")
    ours = primed(tokenizer, [fox] * 100 + character[:2], skip_special_tokens=True)
    assert said(ours, tokenizer, [*character[2:], fox]) == ["東", " fox"]


@pytest.mark.parametrize(("length", "kept"), [(128, True), (129, False)])
def test_a_short_prompt_keeps_the_decoder_of_vllm(length: int, kept: bool) -> None:
    prompt = [TOKENIZERS["byte level"].token_to_id("ing")] * length
    params = SamplingParams()
    request = EngineCoreRequest("r", prompt, None, params, None, 0.0, None, None, None)
    fast = PreTrainedTokenizerFast(tokenizer_object=TOKENIZERS["byte level"])
    detokenizer = FastIncrementalDetokenizer(fast, request)
    theirs = detokenizer.stream
    state = SimpleNamespace(detokenizer=detokenizer, prompt_token_ids=prompt)
    bound_priming(cast(Any, state))
    assert (detokenizer.stream is theirs) is kept
