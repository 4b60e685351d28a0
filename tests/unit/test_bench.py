"""The benchmark: its arithmetic, how it reads replies, and one quick run of everything."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import psutil
import pytest

from bench.cases import Case, Dialect, demo_cases, paced_cases, prompt_cases, tiny_cases
from bench.client import BenchError, Reply
from bench.gaps import longest_gap
from bench.goals import GOALS, Goal, bound, judge, tolerance
from bench.kept import Kept
from bench.page import BEGIN, END, PAGE, write_page
from bench.parts import Setup
from bench.replies import read
from bench.runner import Sample
from bench.servers import ENGINE, llmserve_command, vllm_command
from bench.stats import Ratio, paired_ratio, parse_cpu_model, parse_stat, percentile
from bench.streams import frames_per_token, values_of, waiting_share
from bench.values import Found, Value, rows
from llmserve.engine.vllm import args
from llmserve.settings import Settings

ROOT = Path(__file__).parents[2]
CHAT = Case("chat stream", Dialect.CHAT, streams=2, requests=4, tokens=2)
NATIVE = Case("native stream", Dialect.NATIVE, streams=2, requests=4, tokens=2)

CHAT_STREAM = (
    b'data: {"choices":[{"delta":{"role":"assistant","content":""},"finish_reason":null}]}\n\n',
    b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":null}]}\n\nda',
    b'ta: {"choices":[{"delta":{"content":"b"},"finish_reason":"length"}]}\n\n',
    b'data: {"choices":[],"usage":{"completion_tokens":2}}\n\n',
    b"data: [DONE]\n\n",
)
NATIVE_STREAM = (
    b'event: token\r\nid: 0\r\ndata: {"text":"a","tokens":1}\r\n\r\n',
    b": keep-alive\r\n\r\n",
    b'event: token\r\nid: 1\r\ndata: {"text":"b","tokens":1,"finish_reason":"length"}\r\n\r\n',
    b'event: done\r\ndata: {"finish_reason":"length","usage":{"completion_tokens":2}}\r\n\r\n',
)


def reply(pieces: tuple[bytes, ...], status: int = 200) -> Reply:
    """Pieces that arrive one second after the other; the request was sent at second 10."""
    timed = [(11.0 + second, piece) for second, piece in enumerate(pieces)]
    return Reply(begin=10.0, status=status, end=timed[-1][0], pieces=timed)


def sample(number: int, server: str, cpu: float, case: Case = CHAT) -> Sample:
    return Sample(
        number, case.key, server, 4, 8, 8, 2.0, cpu, 0.25, 0.5, 0.02, 2**20, 2**19, 0.1, 0.01
    )


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        ([7.0], 50, 7.0),
        ([3.0, 1.0, 2.0], 50, 2.0),
        ([1.0, 2.0, 3.0, 4.0], 50, 2.5),
        ([1.0, 2.0, 3.0, 4.0, 5.0], 0, 1.0),
        ([1.0, 2.0, 3.0, 4.0, 5.0], 100, 5.0),
        ([0.0, 10.0], 99, 9.9),
    ],
)
def test_percentile(values: list[float], percent: float, expected: float) -> None:
    assert percentile(values, percent) == pytest.approx(expected)


@pytest.mark.parametrize(("values", "percent"), [([], 50), ([1.0], 101), ([1.0], -1)])
def test_percentile_refuses(values: list[float], percent: float) -> None:
    with pytest.raises(ValueError, match=r"."):
        percentile(values, percent)


def test_ratios_are_taken_round_by_round() -> None:
    """The machine was ten times slower in the last round: the ratio does not notice."""
    assert paired_ratio([1.0, 3.0, 10.0], [2.0, 3.0, 20.0]) == Ratio(0.5, 0.5, 1.0)


@pytest.mark.parametrize(
    ("ours", "theirs"), [([], []), ([1.0], []), ([1.0], [1.0, 2.0]), ([1.0], [0.0])]
)
def test_no_ratio_without_pairs(ours: list[float], theirs: list[float]) -> None:
    assert paired_ratio(ours, theirs) is None


def test_parse_stat() -> None:
    fields = [str(number) for number in range(3, 53)]
    fields[0] = "S"
    found = parse_stat(f"42 (python (x) y) {' '.join(fields)}\n")
    assert (found.user_ticks, found.system_ticks, found.resident_pages) == (14, 15, 24)


def test_parse_stat_of_a_real_process() -> None:
    """Against psutil, which reads the same file on its own."""
    stat = parse_stat(Path("/proc/self/stat").read_text(encoding="utf-8"))
    times = psutil.Process().cpu_times()
    ticks = (stat.user_ticks + stat.system_ticks) / 100
    assert ticks == pytest.approx(times.user + times.system, abs=0.5)
    assert stat.resident_pages > 0


def test_parse_cpu_model() -> None:
    assert parse_cpu_model("processor\t: 0\nmodel name\t: Some CPU: fast\n") == "Some CPU: fast"
    assert parse_cpu_model("") == "unknown"


def test_a_chat_stream_is_read_over_the_borders_of_pieces() -> None:
    answer = read(CHAT, reply(CHAT_STREAM))
    assert answer.said == ("ab", 2, "length")
    assert answer.frames == 2
    assert answer.first_text == 2.0, "the role comes first and is no text"
    assert answer.total == 5.0
    assert answer.gaps == (1.0,), "a frame arrives with its last byte"


def test_a_native_stream_is_read() -> None:
    answer = read(NATIVE, reply(NATIVE_STREAM))
    assert answer.said == ("ab", 2, "length")
    assert answer.first_text == 1.0


def test_json_replies_are_read() -> None:
    usage = {"usage": {"completion_tokens": 2}}
    chat = {"choices": [{"message": {"content": "ab"}, "finish_reason": "length"}]} | usage
    text = {"choices": [{"text": "ab", "finish_reason": "length"}]} | usage
    for dialect, body in ((Dialect.CHAT, chat), (Dialect.COMPLETION, text)):
        case = Case("x", dialect, 1, 1, 2, streaming=False)
        assert read(case, reply((json.dumps(body).encode(),))).said == ("ab", 2, "length")


@pytest.mark.parametrize(
    ("case", "pieces", "status", "reason"),
    [
        (CHAT, CHAT_STREAM, 503, "status 503"),
        (CHAT, CHAT_STREAM[:-1], 200, "without its end"),
        (CHAT, CHAT_STREAM[2:], 200, "1 tokens|without|0 tokens|2 tokens|'length'"),
        (CHAT, (b'data: {"error":{"message":"gone"}}\n\n',), 200, "the stream failed"),
        (NATIVE, NATIVE_STREAM[:-1], 200, "without its end"),
        (Case("x", Dialect.CHAT, 1, 1, 3), CHAT_STREAM, 200, "2 tokens"),
    ],
)
def test_a_wrong_reply_ends_the_measurement(
    case: Case, pieces: tuple[bytes, ...], status: int, reason: str
) -> None:
    with pytest.raises(BenchError, match=reason):
        read(case, reply(pieces, status))


def test_rows_compare_the_servers() -> None:
    samples = [
        sample(0, "llmserve", 0.4),
        sample(0, "vllm", 0.8),
        sample(1, "vllm", 0.8),
        sample(1, "llmserve", 0.6),
        sample(0, "llmserve", 0.2, NATIVE),
    ]
    found = {row.measure: row for row in rows(list(values_of(samples, [CHAT, NATIVE])))}
    cpu = found["chat stream c=2: CPU µs per token"]
    assert (cpu.ours, cpu.theirs) == (pytest.approx(62_500), pytest.approx(100_000))
    assert cpu.ratio is not None
    assert (cpu.ratio.middle, cpu.ratio.greatest) == (pytest.approx(0.625), pytest.approx(0.75))
    assert found["chat stream c=2: tokens/s"].ours == 4.0
    assert found["chat stream c=2: TTFT p50 ms"].ours == 250.0
    assert found["chat stream c=2: ITL p99 ms"].ours == 20.0
    assert found["chat stream c=2: front-end tokens/s"].theirs == pytest.approx(10)
    native = found["native stream c=2: CPU µs per token"]
    assert (native.ours, native.theirs, native.ratio) == (pytest.approx(25_000), None, None)
    assert waiting_share(samples) == pytest.approx(0.05)
    assert frames_per_token(samples) == {"llmserve": 1.0, "vllm": 1.0}


def test_names_of_cases_are_unique() -> None:
    makers = (tiny_cases, paced_cases, prompt_cases, demo_cases)
    everything = [case.key for make in makers for case in make(quick=False)]
    assert len(set(everything)) == len(everything)
    assert [case.key for make in makers for case in make(quick=True)] == everything
    for case in (case for make in makers for quick in (True, False) for case in make(quick=quick)):
        assert case.requests % case.turns == 0 < case.requests // case.turns


def test_prompts_are_as_long_as_they_say_and_different() -> None:
    (case,) = [case for case in prompt_cases(quick=False) if case.name == "2k prompt chat stream"]
    texts = [case.body(number)["messages"][0]["content"] for number in range(case.requests)]
    assert all(2_000 <= len(text.split()) < 2_030 for text in texts)
    assert len({text[:200] for text in texts}) == case.requests
    assert case.body(1) == case.body(1)


def measured(ours: list[float], theirs: list[float]) -> list[Value]:
    pairs = (("llmserve", ours), ("vllm", theirs))
    return [
        Value("speed", server, number, value)
        for server, values in pairs
        for number, value in enumerate(values)
    ]


RATIO = Goal("few", "…", 0.5, ("speed",))
OWN = Goal("short", "…", 3, ("speed",), ratio=False, unit="ms")
NOT_BELOW = Goal("fast", "…", 1.0, ("speed",), at_least=True, tolerant=True)


@pytest.mark.parametrize(
    ("goal", "ours", "theirs", "met"),
    [
        (RATIO, [5, 4, 9], [10, 10, 10], True),
        (RATIO, [6, 4, 9], [10, 10, 10], False),
        (OWN, [1, 3, 9], [], True),
        (OWN, [1, 4, 9], [], False),
        (NOT_BELOW, [10, 11, 9], [10, 10, 10], True),
        (NOT_BELOW, [9.6, 10.2, 9.4], [10, 10, 10], True),  # 0.96, and the rounds differ
        (NOT_BELOW, [9.6, 9.6, 9.6], [10, 10, 10], False),  # 0.96, and they do not
        (NOT_BELOW, [5, 8, 12], [10, 10, 10], False),  # noise does not excuse everything
        (RATIO, [5], [], False),  # not measured is not met
    ],
)
def test_goals_are_judged(goal: Goal, ours: list[float], theirs: list[float], met: bool) -> None:
    (verdict,) = judge(measured(ours, theirs), [goal])
    assert verdict.met is met
    assert (verdict.word == "not measured") is (goal is RATIO and not theirs)
    assert goal.name in verdict.line
    assert bound(goal) in verdict.line


def test_a_goal_may_compare_with_another_measure_of_vllm() -> None:
    values = [Value("ours", "llmserve", 0, 1.0), Value("theirs", "vllm", 0, 4.0)]
    (verdict,) = judge(values, [Goal("few", "…", 0.5, ("ours ÷ theirs",))])
    assert (verdict.met, verdict.middle) == (True, 0.25)


def test_tolerance() -> None:
    assert tolerance([1.0]) == 0.0
    assert tolerance([0.98, 0.99, 1.0, 1.01, 1.02]) == pytest.approx(0.02)
    assert tolerance([0.1, 0.5, 1.0, 1.5, 2.0]) == 0.1


def test_every_check_of_the_streams_is_measured() -> None:
    """Goals name measures by text: that text is what the parts produce."""
    cases = [*tiny_cases(quick=False), *paced_cases(quick=False), *demo_cases(quick=False)]
    samples = [sample(0, server, 0.4, case) for case in cases for server in ("llmserve", "vllm")]
    known = {value.measure for value in values_of(samples, cases)}
    asked = {name for goal in GOALS for check in goal.checks for name in check.split(" ÷ ")}
    assert {name for name in asked if " c=" in name} <= known


def test_the_page_has_its_markers_and_every_goal() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text.count(BEGIN) == text.count(END) == 1
    written = text[text.index(BEGIN) : text.index(END)]
    for verdict in judge([]):
        assert f"| {verdict.goal.name} | {verdict.check} | {bound(verdict.goal)}" in written
    for name in re.findall(r"\]\(([^):]+\.svg)\)", text):
        assert (PAGE.parent / name).is_file()


def test_the_page_is_written_between_its_markers(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text(f"by hand\n\n{BEGIN}\n\nold\n\n{END}\n\nby hand as well\n")
    names = [check.partition(" ÷ ")[0] for goal in GOALS for check in goal.checks]
    values = [
        Value(name, server, number, 100.0 + number)
        for name in dict.fromkeys(names)
        for server in ("llmserve", "vllm")
        for number in range(3)
    ]
    write_page(page, Found(values), {"cpu": "some", "rounds": 3})
    text = page.read_text()
    assert text.startswith("by hand\n\n")
    assert text.endswith(f"{END}\n\nby hand as well\n")
    assert "\nold\n" not in text
    assert "| **missed** |" in text
    assert "* cpu: some" in text
    drawn = re.findall(r"\]\((.*\.svg)\)", text)
    assert len(drawn) == 4
    for name in drawn:
        root = ElementTree.fromstring((tmp_path / name).read_text())  # noqa: S314  # ours
        assert root.tag.endswith("svg")


def test_a_gain_goes_in_the_direction_of_its_measure(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"{BEGIN}{END}")
    figures = {
        "demo batching": (12.0, 10.0),
        "a stream: frames per token": (1.0, 0.5),
        "a stream: CPU µs per token": (1.0, 2.0),
        "a stream: tokens/s": (1.0, 2.0),
        "idle TTFT p50 ms": (2.0, 1.0),
    }
    values = [
        Value(measure, server, 0, value)
        for measure, pair in figures.items()
        for server, value in zip(("llmserve", "vllm"), pair, strict=True)
    ]
    write_page(page, Found(values), {})
    section = page.read_text().partition("## Where nothing is gained")[2].partition("## ")[0]
    named = [measure for measure in figures if f"| {measure} |" in section]
    assert named == ["a stream: tokens/s", "idle TTFT p50 ms"]


def test_the_longest_gap_that_touches_a_span() -> None:
    pieces = [(at, b"x") for at in (0.0, 1.0, 4.0, 4.5, 10.0)]
    reply = Reply(0.0, pieces=pieces)
    assert longest_gap([reply], 3.0, 4.2) == 3.0
    assert longest_gap([reply], 4.1, 4.4) == 0.5
    assert longest_gap([reply, Reply(0.0, pieces=[(0.0, b"x"), (9.0, b"x")])], 4.1, 4.4) == 9.0


def test_both_servers_get_the_same_arguments() -> None:
    """Where llmserve's defaults differ from vLLM's, the benchmark knows it."""
    defaults = args._defaults(Settings(), on_cpu=True)
    assert defaults.items() <= ENGINE.items()
    ours = llmserve_command("vllm", Path("tiny"), ENGINE)
    theirs = vllm_command(Path("tiny"), ENGINE)
    for name in ENGINE:
        assert any(word.startswith(f"engine.{name}=") for word in ours), name
        flag = name.replace("_", "-")
        assert {f"--{flag}", f"--no-{flag}"} & set(theirs), name


def test_a_quick_run_over_the_fake_engine(tmp_path: Path) -> None:
    """Everything but vLLM: servers are started, measured and stopped, and it is written down."""
    target, page = tmp_path / "results" / "quick.json", tmp_path / "performance.md"
    page.write_text(f"{BEGIN}{END}")
    command = [sys.executable, "-m", "bench", "--quick", "--engine", "fake", "--json", str(target)]
    command += ["--page", str(page)]
    command += ["--keep", str(tmp_path / "results" / "kept.json")]
    for word in ("c=16", "scripted", "idle native"):
        command += ["--only", word]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "| chat stream c=16: CPU µs per token " in done.stdout
    data = json.loads(target.read_text(encoding="utf-8"))
    measures = {each["measure"]: each["value"] for each in data["values"]}
    assert measures["chat stream c=16: tokens/s"] > 0
    assert "gap by a 1 MB body, scripted engine: added ms" in measures
    assert "idle native stream: held" in measures
    assert data["notes"]["tiny model: equal answers"] == 20
    assert str(ROOT) not in target.read_text(encoding="utf-8")
    assert "| idle native stream: held |" in page.read_text(encoding="utf-8")
    assert "Not judged" in page.read_text(encoding="utf-8")
    assert "missed" not in page.read_text(encoding="utf-8")
    # The same once more: what is done is not measured again.
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("measured already") == 3
    assert json.loads(target.read_text(encoding="utf-8"))["values"] == data["values"]


def test_a_part_is_kept_as_soon_as_it_is_done(tmp_path: Path) -> None:
    """And belongs to a run that was asked for the same."""
    path = tmp_path / "kept.json"
    setup = Setup(3, False, True, (), {"dtype": "auto"}, tmp_path, print)
    found = Found([Value("a: tokens/s", "vllm", 2, 1.5, 0)], {"a: note": {"vllm": 0.5}})
    about = {"commit": "abc", "packages": {"torch": "2"}}
    Kept(path, setup, about).put("a", found)
    again = Kept(path, replace(setup, folder=ROOT, say=str), about)
    assert again.get("a") == found
    assert again.get("b") is None
    for other, what, named in (
        (replace(setup, rounds=5), about, "rounds"),
        (setup, about | {"commit": "def"}, "commit"),
    ):
        with pytest.raises(BenchError, match=f"a run of something else: its {named} is"):
            Kept(path, other, what)
    path.write_text("[]")
    with pytest.raises(BenchError, match="no parts of a benchmark"):
        Kept(path, setup, about)


def test_the_paced_engine_says_its_prompt_at_a_pace() -> None:
    pytest.importorskip("vllm")
    from bench.paced_engine import FIRST_WORD, Echo

    def scheduled(
        counts: dict[str, int], new: list[SimpleNamespace], finished: set[str]
    ) -> SimpleNamespace:
        return SimpleNamespace(
            num_scheduled_tokens=counts, scheduled_new_reqs=new, finished_req_ids=finished
        )

    word = FIRST_WORD
    new = SimpleNamespace(
        req_id="a",
        prompt_token_ids=[1, word, word + 1, 2],
        num_computed_tokens=0,
        sampling_params=SimpleNamespace(seed=20_000),
    )
    echo = Echo()
    begun = time.monotonic()
    steps = [
        echo.step(scheduled({"a": 3}, [new], set())),  # the prompt, in two parts
        *(echo.step(scheduled({"a": 1}, [], set())) for _ in range(4)),
    ]
    said = [[[]], [[word]], [[word + 1]], [[word]], [[word + 1]]]
    assert [step.sampled_token_ids for step in steps] == said
    assert [step.req_ids for step in steps] == [["a"]] * 5
    assert time.monotonic() - begun >= 4 * 0.02  # The first one follows on a pause.
    assert echo.step(scheduled({}, [], {"a"})).req_ids == []


def test_a_page_without_markers_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("by hand")
    command = [sys.executable, "-m", "bench", "--engine", "fake", "--page", str(page)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "markers" in done.stderr


def test_a_case_that_does_not_exist_is_named() -> None:
    command = [sys.executable, "-m", "bench", "--only", "nonsense"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "nonsense" in done.stderr
