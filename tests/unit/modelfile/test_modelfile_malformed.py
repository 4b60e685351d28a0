"""Every malformed file ends in a typed error that says where and what, in little time
and memory."""

from __future__ import annotations

import random
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from llmserve.modelfile import Malformed, ModelFileError, Refused, UnknownFormat, describe
from tests.unit.modelfile import malformed

SECONDS = 0.1
BYTES = 100_000_000
# CPU time is what a machine busy with other tests does not stretch (much).
# Tracing for coverage makes Python several times slower; the bound is about the work.
# The rest of the slack is for machines that are slow, or shared, for minutes.
SLACK = 4.0 if sys.gettrace() is None else 10.0


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def describe_or_tell(path: Path, name: str) -> None:
    describe(path)
    pytest.fail(f"{name}: was described")


def check(error: ModelFileError, name: str) -> None:
    assert isinstance(error, Malformed | Refused | UnknownFormat), name
    assert error.message.startswith(error.file), name
    assert len(error.message) < 1500, name
    if isinstance(error, Malformed):
        assert error.where, name
        assert error.expected, name


def fastest(work: Callable[[], object]) -> float:
    """Seconds of CPU of the fastest of three tries: others use the machine as well."""
    least = float("inf")
    for _ in range(3):
        start = time.thread_time()
        work()
        least = min(least, time.thread_time() - start)
        if least < SECONDS:
            break
    return least


def refused(path: Path, name: str) -> None:
    """The file is no model, and the error says so properly."""
    with pytest.raises(ModelFileError) as caught:
        describe_or_tell(path, name)
    check(caught.value, name)


def test_the_corpus(tmp_path: Path) -> None:
    path = tmp_path / "model"
    count = 0
    for name, data in malformed.light_cases():
        write(path, data)
        assert fastest(lambda name=name: refused(path, name)) < SECONDS * SLACK, name  # type: ignore[misc]
        count += 1
    assert count > 1000


def test_memory_of_the_corpus(tmp_path: Path) -> None:
    path = tmp_path / "model"
    for name, data in malformed.light_cases():
        write(path, data)
        del data
        tracemalloc.start()
        with pytest.raises(ModelFileError):
            describe(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < BYTES / 10, name


def test_heavy_files(tmp_path: Path) -> None:
    path = tmp_path / "model"
    for name, data in malformed.heavy_cases():
        write(path, data)
        del data
        assert fastest(lambda name=name: refused(path, name)) < SECONDS * SLACK, name  # type: ignore[misc]
        tracemalloc.start()
        with pytest.raises(ModelFileError):
            describe(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < BYTES, (name, peak)


def test_a_header_of_100_mb(tmp_path: Path) -> None:
    """Sparse files: what is promised would be there."""
    path = tmp_path / "model"
    for start in ((100_000_000).to_bytes(8, "little") + b'{"a":', b"GGUF\3\0\0\0"):
        with path.open("wb") as file:
            file.write(start.ljust(24, b"\1"))
            file.truncate(1 << 40)
        assert fastest(lambda: refused(path, "a header of 100 MB")) < SECONDS * SLACK


def test_mutations(tmp_path: Path) -> None:
    """A fixed seed, so that a failure comes again. The guided search is ``make fuzz``."""
    dice = random.Random(20_261_121)  # noqa: S311
    path, seeds = tmp_path / "model", malformed.seeds()
    for number in range(3000):
        data = bytearray(dice.choice(seeds))
        for _ in range(dice.choice((1, 1, 2, 5))):
            mutate(data, dice)
        write(path, bytes(data))
        seconds = fastest(lambda number=number: told(path, number))  # type: ignore[misc]
        assert seconds < SECONDS * SLACK, f"mutation {number}"


def told(path: Path, number: int) -> None:
    """The file is described, or the error says properly why not."""
    try:
        found = describe(path)
    except ModelFileError as error:
        check(error, f"mutation {number}")
    else:
        assert found.files[0].bytes == path.stat().st_size


def mutate(data: bytearray, dice: random.Random) -> None:
    if not data:
        return
    # Headers are at the beginning, and the rest is never looked at.
    at = min(dice.randrange(len(data)), dice.randrange(len(data)), dice.randrange(len(data)))
    kind = dice.randrange(6)
    if kind == 0:
        data[at] = dice.randrange(256)
    elif kind == 1:
        data[at] ^= 1 << dice.randrange(8)
    elif kind == 2:
        del data[at:]
    elif kind == 3:
        del data[at : at + dice.randrange(1, 9)]
    elif kind == 4:
        data[at:at] = data[at : at + dice.randrange(1, 65)]
    else:
        number = dice.choice((0, 1, 255, 2**31, 2**32 - 1, 2**63, 2**64 - 1))
        data[at : at + 8] = number.to_bytes(8, dice.choice(("little", "big")))


@pytest.mark.parametrize(
    "text",
    [
        b'{"weight_map":{' + b"".join(b'"%07d":"f.safetensors",' % each for each in range(90_000)),
        b'{"weight_map":{"' + b'\\"' * 12_000_000,
        b'{"x":' + b"[" * 30_000_000,
        b'{"x":[' + b'"",' * 8_000_000,
        b'{"x":[' + b"1," * 12_000_000,
        b'{"x":' + b" " * 30_000_000,
        b'{"weight_map":{' + b" " * 30_000_000,
        b'{"x":"' + b"x" * 30_000_000,
        b"{" + b'"":1,' * 200_000,
        b'{"a":' * 1_000_000,
    ],
    ids=lambda text: f"{text[:20]!r}, {len(text)} bytes",
)
@pytest.mark.parametrize(
    "name", ["model.safetensors.index.json", "config.json", "tokenizer_config.json"]
)
def test_heavy_json(tmp_path: Path, name: str, text: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(malformed.safetensors({"a": ("F32", (1,))}))
    (tmp_path / name).write_bytes(text)

    def told_of() -> None:
        try:
            assert describe(tmp_path).problems[0].kind == "metadata"
        except ModelFileError as error:
            check(error, name)

    assert fastest(told_of) < SECONDS * SLACK
