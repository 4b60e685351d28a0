"""``llmserve inspect``: look into a model file without loading it."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from llmserve.modelfile import ModelFile


@click.command(short_help="Look into a model file or folder without loading it.")
@click.argument("path")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--tensors", is_flag=True, help="Show the tensor table as well.")
def inspect(path: str, as_json: bool, tensors: bool) -> int:
    """Describe the model in PATH (a GGUF, SafeTensors or APR file, or a folder) from its
    headers alone.

    Exits with 1 when it cannot be described, and with 3 when something is wrong with its
    layout.
    """
    from llmserve.modelfile import describe

    model = describe(path)
    if as_json:
        click.echo(json.dumps(_json(model, tensors=tensors), ensure_ascii=False))
    else:
        _render(model, tensors=tensors)
    return 3 if model.problems else 0


def _json(model: ModelFile, *, tensors: bool) -> dict[str, Any]:
    fields = {each.name for each in dataclasses.fields(model)} - {"tensors", "metadata"}
    data = {name: _plain(getattr(model, name)) for name in sorted(fields)}
    data |= {"total_bytes": model.total_bytes, "metadata": _plain(model.metadata)}
    if tensors:
        data["tensors"] = [each._asdict() for each in model.tensors]
    return data


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: _plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if hasattr(value, "_asdict"):
        return value._asdict()
    if isinstance(value, dict) or hasattr(value, "items"):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _render(model: ModelFile, *, tensors: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    facts = Table(box=None, show_header=False, pad_edge=False)
    for label, text in _facts(model):
        facts.add_row(label, text)
    console.print(facts, markup=False)
    for problem in model.problems:
        console.print(f"problem: {problem.where}: {problem.detail}", markup=False)
    if tensors:
        table = Table("tensor", "shape", "dtype", "bytes", box=None, pad_edge=False)
        for each in model.tensors:
            table.add_row(each.name, str(list(each.shape)), each.dtype, f"{each.bytes:,}")
        console.print(table, markup=False)


def _facts(model: ModelFile) -> list[tuple[str, str]]:
    attention, size = model.attention, model.dimensions
    facts = [
        ("name", model.name),
        ("format", " ".join(filter(None, (model.format.value, model.version)))),
        ("architecture", model.architecture),
        ("licence", model.licence),
        ("parameters", f"{model.parameters.total:,}"),
        (
            "weights",
            f"{model.quantization.label}, {model.quantization.bits_per_weight:.2f} bits each",
        ),
        ("size", f"{model.total_bytes:,} bytes in {len(model.files)} file(s)"),
        ("context", size.context_length and f"{size.context_length:,} tokens"),
        ("layers", size.layers and f"{size.layers} of width {size.hidden_size}"),
        (
            "attention",
            attention
            and f"{attention.kind.value}, {attention.heads} heads, {attention.kv_heads} for keys"
            f" and values, {attention.head_dim} wide",
        ),
        (
            "vocabulary",
            model.tokenizer and model.tokenizer.tokens and f"{model.tokenizer.tokens:,}",
        ),
        ("chat template", ", ".join(each.name for each in model.chat_templates)),
        ("tensors", f"{len(model.tensors)}"),
        ("fingerprint", model.fingerprint),
    ]
    return [(label, str(text)) for label, text in facts if text]
