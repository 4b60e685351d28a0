"""Arrivals, lengths and steps: pure functions of a seed."""

from __future__ import annotations

import statistics

import pytest

from llmserve.errors import ConfigError
from llmserve.loadtest.arrivals import arrivals, parse_steps
from llmserve.loadtest.lengths import SHAREGPT_PROMPTS, parse_lengths
from llmserve.loadtest.seeds import seeded


def poisson(seed: int, *, rate: float = 50, requests: int | None = 5000) -> list[float]:
    return arrivals("poisson", rate, seconds=None, requests=requests, rng=seeded(seed))


def test_gaps_of_a_poisson_process_are_exponential() -> None:
    times = poisson(1)
    gaps = [after - before for before, after in zip([0.0, *times], times, strict=False)]
    assert statistics.fmean(gaps) == pytest.approx(1 / 50, rel=0.05)
    # The deviation of an exponential distribution is its mean.
    assert statistics.stdev(gaps) == pytest.approx(1 / 50, rel=0.05)
    assert times == sorted(times)


def test_a_schedule_is_a_function_of_the_seed() -> None:
    assert poisson(1) == poisson(1)
    assert poisson(1) != poisson(2)


def test_even_arrivals_are_even_and_end_in_time() -> None:
    times = arrivals("even", 4, seconds=1.0, requests=None, rng=seeded(0))
    assert times == [0.0, 0.25, 0.5, 0.75]


def test_a_schedule_ends_with_the_first_of_its_bounds() -> None:
    both = arrivals("even", 4, seconds=100.0, requests=3, rng=seeded(0))
    assert both == [0.0, 0.25, 0.5]
    limited = arrivals("poisson", 10, seconds=2.0, requests=None, rng=seeded(3))
    assert limited
    assert limited[-1] < 2.0


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("8", (8,)),
        ("1,2,4", (1, 2, 4)),
        ("2:8:2", (2, 4, 6, 8)),
        ("0.1:0.3:0.1", (0.1, 0.2, 0.3)),
        ("1:6:2", (1, 3, 5)),
    ],
)
def test_steps_of_a_ramp(text: str, steps: tuple[float, ...]) -> None:
    assert parse_steps(text, "--rate", whole=False) == pytest.approx(steps)


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "x", "1,,2", "1:2", "4:2:1", "nan", "inf", "1:9e9:1", "200000"]
)
def test_steps_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="--rate"):
        parse_steps(text, "--rate", whole=False)


def test_a_concurrency_is_a_whole_number() -> None:
    with pytest.raises(ConfigError, match="whole numbers"):
        parse_steps("1.5", "--concurrency", whole=True)


@pytest.mark.parametrize(
    ("text", "mean", "deviation"),
    [
        ("100", 100, 0),
        ("50-150", 100, 29.2),
        ("normal:100,10", 100, 10),
        ("lognormal:100,40", 100, 40),
    ],
)
def test_lengths_have_the_mean_and_deviation_that_were_asked_for(
    text: str, mean: float, deviation: float
) -> None:
    lengths = parse_lengths(text, "--prompt-tokens")
    rng = seeded(7)
    drawn = [lengths.draw(rng) for _ in range(20_000)]
    assert statistics.fmean(drawn) == pytest.approx(mean, rel=0.02)
    assert statistics.pstdev(drawn) == pytest.approx(deviation, rel=0.06)
    assert lengths.mean == mean


def test_lengths_are_at_least_one_and_at_most_what_they_are_cut_at() -> None:
    rng = seeded(7)
    narrow = parse_lengths("normal:2,50", "--prompt-tokens")
    assert min(narrow.draw(rng) for _ in range(1000)) == 1
    drawn = [SHAREGPT_PROMPTS.draw(rng) for _ in range(20_000)]
    assert max(drawn) == 1024
    assert 190 < statistics.fmean(drawn) < 240


@pytest.mark.parametrize("text", ["0", "-5", "9-3", "normal:3", "lognormal:0,1", "many", "1.5"])
def test_lengths_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="--output-tokens"):
        parse_lengths(text, "--output-tokens")
