"""Prompts: of the length that was asked for, the same for the same seed, alike only on
purpose."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmserve.errors import ConfigError
from llmserve.loadtest.calibrate import Scale, fit
from llmserve.loadtest.lengths import Lengths
from llmserve.loadtest.plan import Workload
from llmserve.loadtest.prompts import ShareGpt, Synthetic, read_sharegpt

TEN = Lengths("fixed", 10)
HUNDRED = Lengths("fixed", 100)


def synthetic(seed: int = 1, scale: Scale = Scale(), **workload: object) -> Synthetic:  # noqa: B008
    return Synthetic(Workload(HUNDRED, TEN, **workload), TEN, scale, seed)  # type: ignore[arg-type]


def test_calibration_is_the_line_through_two_points() -> None:
    scale = fit((16, 45), (144, 301))
    assert scale == Scale(per_unit=2.0, overhead=13.0)
    assert scale.units(113) == 50
    with pytest.raises(ValueError, match="144 units"):
        fit((16, 45), (144, 45))


def test_a_prompt_has_as_many_words_as_make_its_tokens() -> None:
    prompt = synthetic(scale=Scale(per_unit=2.0, overhead=20.0)).prompt(5)
    assert len(prompt.text.split()) == 40
    assert prompt.answer_tokens == 10


def test_prompts_are_a_function_of_seed_and_number() -> None:
    assert synthetic(1).prompt(3) == synthetic(1).prompt(3)
    assert synthetic(1).prompt(3) != synthetic(2).prompt(3)


def test_no_two_prompts_begin_alike() -> None:
    source = synthetic()
    begins = {tuple(source.prompt(number).text.split()[:4]) for number in range(2000)}
    assert len(begins) == 2000


def test_a_share_of_the_prompts_has_a_shared_prefix() -> None:
    source = synthetic(prefix_tokens=30, prefix_share=0.25, prefix_groups=2)
    prompts = [source.prompt(number).text.split() for number in range(1000)]
    longer = [tuple(each[:30]) for each in prompts if len(each) == 130]
    assert {len(each) for each in prompts} == {100, 130}
    assert 0.2 < len(longer) / 1000 < 0.3
    assert len(set(longer)) == 2


def sharegpt(tmp_path: Path, *pairs: tuple[str, str]) -> Path:
    entries = [
        {"conversations": [{"from": "human", "value": a}, {"from": "gpt", "value": b}]}
        for a, b in pairs
    ]
    path = tmp_path / "sharegpt.json"
    path.write_text(json.dumps([*entries, {"conversations": []}, {"id": 1}, "x"]), "utf-8")
    return path


def test_a_sharegpt_file_gives_prompts_and_lengths(tmp_path: Path) -> None:
    path = sharegpt(tmp_path, ("a" * 40, "b" * 80), ("hi", "short"), ("c" * 5000, "long" * 20))
    source = ShareGpt(read_sharegpt(path), None, Scale(per_unit=0.25), seed=1)
    # The second prompt has less than 4 tokens, the third more than 1,024.
    assert source.distinct == 1
    assert source.prompt(0).text == "a" * 40
    assert source.prompt(0).answer_tokens == 20
    assert source.prompt(1) == source.prompt(0)


def test_the_answers_to_a_sharegpt_file_can_be_given(tmp_path: Path) -> None:
    path = sharegpt(tmp_path, ("a" * 40, ""))
    source = ShareGpt(read_sharegpt(path), TEN, Scale(per_unit=0.25), seed=1)
    assert source.prompt(0).answer_tokens == 10


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 1}', "[1]"])
def test_a_file_without_conversations_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"x\.json"):
        read_sharegpt(path)


def test_a_file_without_a_usable_conversation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no conversation"):
        ShareGpt(read_sharegpt(sharegpt(tmp_path, ("a", "b"))), None, Scale(0.25), seed=1)
