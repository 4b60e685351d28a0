"""``python -m bench.modelfile``: reading headers, side by side with the reference readers.

All readers take turns in one run, in a process of their own for each figure of memory;
ratios are of medians. The files: the demo GGUF and its SafeTensors conversion, and two
sparse ones made here (a 70B-class GGUF of 40 GB apparent size, and a SafeTensors model
of 1,000 tensors in 30 shards).
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import click
from rich.console import Console
from rich.table import Table

LAYERS, VOCABULARY, MERGES = 80, 150_000, 280_000
APPARENT_BYTES = 40_000_000_000
TENSORS, SHARDS = 1000, 30
OURS = "llmserve"


@dataclass(frozen=True)
class Case:
    """``readers``: name → statement that reads ``path``; ours is the first. ``goal`` in
    milliseconds."""

    name: str
    path: Path
    readers: dict[str, str]
    goal: float | None


DESCRIBE = "from llmserve.modelfile import describe as read"
HEADER = """
from contextlib import closing
from llmserve.modelfile.gguf import read_gguf
from llmserve.modelfile.local import LocalStore
def read(path):
    with closing(LocalStore(path.parent).open(path.name)) as source:
        return len(read_gguf(source).tensors)
"""
GGUF_PY = "from gguf import GGUFReader as read"
SAFETENSORS = """
from safetensors import safe_open
def read(path):
    count = 0
    for each in sorted(path.glob("*.safetensors")):
        with safe_open(str(each), "np") as file:
            for name in file.keys():
                part = file.get_slice(name)
                part.get_shape(), part.get_dtype()
                count += 1
    return count
"""


def cases(folder: Path) -> list[Case]:
    from llmserve.provision.cache import cache_dir
    from llmserve.provision.demo import demo_gguf, obtain_demo

    demo = demo_gguf(cache_dir())
    large, shards = folder / "large.gguf", folder / "shards"
    write_large(large)
    write_shards(shards)
    return [
        Case("demo GGUF, header", demo, {OURS: HEADER, "gguf-py": GGUF_PY}, 8),
        Case("demo GGUF, all of describe", demo, {OURS: DESCRIBE, "gguf-py": GGUF_PY}, None),
        Case("70B-class GGUF, 40 GB", large, {OURS: DESCRIBE, "gguf-py": GGUF_PY}, 50),
        Case(
            "demo, SafeTensors folder",
            obtain_demo(cache_dir()),
            {OURS: DESCRIBE, "safetensors": SAFETENSORS},
            None,
        ),
        Case("1,000 tensors, 30 shards", shards, {OURS: DESCRIBE, "safetensors": SAFETENSORS}, 20),
    ]


def write_large(path: Path) -> None:
    """The header of a llama of 70 billion weights, and a hole for them."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    def number(key: str, value: int) -> bytes:
        return text(key) + struct.pack("<II", 4, value)

    def strings(key: str, values: list[str]) -> bytes:
        return text(key) + struct.pack("<IIQ", 9, 8, len(values)) + b"".join(map(text, values))

    words = [f"Ġw{index:x}" for index in range(VOCABULARY)]
    merges = [f"{words[index % VOCABULARY][:4]} {index:x}" for index in range(MERGES)]
    kinds = struct.pack("<IIQ", 9, 5, VOCABULARY) + struct.pack("<i", 1) * VOCABULARY
    sizes = {"block_count": LAYERS, "embedding_length": 8192, "context_length": 131_072}
    sizes |= {"attention.head_count": 64, "attention.head_count_kv": 8}
    keys = [text("general.architecture") + struct.pack("<I", 8) + text("llama")]
    keys += [number(f"llama.{key}", value) for key, value in sizes.items()]
    keys += [strings("tokenizer.ggml.tokens", words), strings("tokenizer.ggml.merges", merges)]
    keys += [text("tokenizer.ggml.token_type") + kinds]
    shapes = {"attn_q": (8192, 8192), "attn_k": (8192, 1024), "attn_v": (8192, 1024)}
    shapes |= {"attn_output": (8192, 8192), "ffn_gate": (8192, 28_672), "ffn_up": (8192, 28_672)}
    shapes |= {"ffn_down": (28_672, 8192), "attn_norm": (8192, 1), "ffn_norm": (8192, 1)}
    infos, offset = [], 0
    for layer in range(LAYERS):
        for name, (inner, outer) in shapes.items():
            info = struct.pack("<IQQIQ", 2, inner, outer, 12, offset)
            infos.append(text(f"blk.{layer}.{name}.weight") + info)
            offset += inner * outer // 256 * 144
    header = b"GGUF" + struct.pack("<IQQ", 3, len(infos), len(keys)) + b"".join(keys + infos)
    with path.open("wb") as file:
        file.write(header)
        file.truncate(max(APPARENT_BYTES, len(header) + 32 + offset))


def write_shards(folder: Path) -> None:
    folder.mkdir()
    index = {}
    for shard in range(SHARDS):
        name = f"model-{shard + 1:05d}-of-{SHARDS:05d}.safetensors"
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for number in range(shard, TENSORS, SHARDS):
            tensor = f"model.layers.{number // 9}.mlp.experts.{number % 9}.down_proj.weight"
            end = offset + 2 * 4096 * 1024
            offsets = [offset, end]
            header[tensor] = {"dtype": "BF16", "shape": [4096, 1024], "data_offsets": offsets}
            index[tensor], offset = name, end
        text = json.dumps(header, separators=(",", ":")).encode()
        with (folder / name).open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + offset)
    content = {"metadata": {"total_size": 0}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content, indent=2))
    (folder / "config.json").write_text('{"model_type": "llama", "num_hidden_layers": 112}')


def reader(source: str) -> Callable[[Path], object]:
    names: dict[str, Callable[[Path], object]] = {}
    exec(source, names)  # noqa: S102 - one of the constants above
    return names["read"]


def times(case: Case, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each reader, taking turns. The first turn warms the disk cache."""
    readers = {name: reader(source) for name, source in case.readers.items()}
    found: dict[str, list[float]] = {name: [] for name in readers}
    for turn in range(rounds + 1):
        for name, read in readers.items():
            # Ours are so short that one of them would be within the clock's noise.
            for _ in range(10 if name == OURS else 1):
                start = time.perf_counter()
                read(case.path)
                if turn:
                    found[name].append((time.perf_counter() - start) * 1e3)
    return found


def memory(source: str, path: Path) -> float:
    """Megabytes by which the peak of a fresh process grows when it reads the file."""
    script = (
        f"{source}\nimport sys\nfrom pathlib import Path\npath = Path(sys.argv[1])\n"
        # Not getrusage: its peak is inherited from the process that started this one.
        "def peak():\n"
        "    status = Path('/proc/self/status').read_text()\n"
        "    return int(status.partition('VmHWM:')[2].split()[0])\n"
        "before = peak()\nkept = read(path)\nprint(peak() - before)\n"
    )
    run = [sys.executable, "-c", script, str(path)]
    done = subprocess.run(run, capture_output=True, text=True, check=True)  # noqa: S603
    return int(done.stdout) * 1024 / 1e6


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1))
def main(rounds: int) -> None:
    """Measure how fast the headers of model files are read."""
    table = Table(title="Reading headers (medians)")
    for column in ("case", "reader", "ms", "ratio", "memory, MB", "goal, ms"):
        table.add_column(column, justify="left" if column in ("case", "reader") else "right")
    with tempfile.TemporaryDirectory() as temporary:
        for case in cases(Path(temporary)):
            found = {name: median(each) for name, each in times(case, rounds).items()}
            for name, value in found.items():
                table.add_row(
                    case.name if name == OURS else "",
                    name,
                    f"{value:.2f}",
                    "" if name == OURS else f"{value / found[OURS]:.1f} x",
                    f"{memory(case.readers[name], case.path):.1f}",
                    f"{case.goal:g}" if name == OURS and case.goal else "",
                )
            table.add_section()
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
