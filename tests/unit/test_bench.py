"""The benchmark: its arithmetic, how it reads replies, and one quick run of everything."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from bench.cases import Case, Dialect, cases, chosen
from bench.client import BenchError, Reply
from bench.replies import read
from bench.report import frames_per_token, rows, waiting_share
from bench.runner import Sample
from bench.servers import ENGINE, llmserve_command, vllm_command
from bench.stats import Ratio, paired_ratio, parse_cpu_model, parse_stat, percentile
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
    return Sample(number, case.key, server, 4, 8, 8, 2.0, cpu, 0.25, 0.5, 2**20, 0.1)


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
    cpu, speed, ttft, native, *_ = rows(samples, [CHAT, NATIVE])
    assert cpu.measure == "CPU µs per token"
    assert (cpu.ours, cpu.theirs) == (pytest.approx(62_500), pytest.approx(100_000))
    assert cpu.ratio is not None
    assert (cpu.ratio.middle, cpu.ratio.greatest) == (pytest.approx(0.625), pytest.approx(0.75))
    assert (speed.ours, ttft.ours) == (4.0, 250.0)
    assert (native.ours, native.theirs, native.ratio) == (pytest.approx(25_000), None, None)
    assert waiting_share(samples) == pytest.approx(0.05)
    assert frames_per_token(samples) == {"llmserve": 1.0, "vllm": 1.0}


def test_cases_are_chosen_by_words() -> None:
    everything = cases(quick=False)
    assert chosen(everything, []) == everything
    assert {case.key for case in chosen(everything, ["chat stream"])} == {
        "chat stream c=16",
        "chat stream c=64",
    }
    assert chosen(everything, ["nothing"]) == []
    assert len({case.key for case in everything}) == len(everything)


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
    """Everything but vLLM: a server is started, measured and stopped."""
    target = tmp_path / "results" / "quick.json"
    command = [sys.executable, "-m", "bench", "--quick", "--engine", "fake", "--json", str(target)]
    begin = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - begin < 15
    assert "| chat stream c=4" in done.stdout
    data = json.loads(target.read_text(encoding="utf-8"))
    assert len(data["samples"]) == len(cases(quick=True))
    assert all(each["tokens"] > 0 and each["seconds"] > 0 for each in data["samples"])
    assert data["equal_answers"] == 20
    assert str(ROOT) not in target.read_text(encoding="utf-8")


def test_a_case_that_does_not_exist_is_named() -> None:
    command = [sys.executable, "-m", "bench", "--only", "nonsense"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "nonsense" in done.stderr
