"""A model as a person sees it. What a file says is never markup here, and cannot send
control characters to the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from llmserve.cli.terminal import printable
from llmserve.modelfile import Comparison, Estimate, ModelFile, ProblemKind, refusal
from llmserve.modelfile.estimate import in_gb

_SHOWN = 40
_WIDE = 60
_MIX = 4


def show(model: ModelFile, estimate: Estimate | None, *, tensors: bool) -> None:
    """To standard output."""
    console = Console(highlight=False)
    _print_rows(console, _facts(model))
    for problem in model.problems:
        where = "note" if problem.kind is ProblemKind.CODE else "problem"
        _print(console, f"{where}: {problem.where}: {problem.detail}")
    for template in model.chat_templates:
        for warning in template.warnings:
            _print(console, f"warning: {warning}")
    if estimate is not None:
        console.print()
        _print_rows(console, _estimate_facts(estimate))
    if tensors:
        console.print()
        table = Table("tensor", "shape", "dtype", "bytes", box=None, pad_edge=False)
        for each in model.tensors:
            shape = " x ".join(map(str, each.shape)) or "scalar"
            table.add_row(*map(_text, (each.name, shape, each.dtype, f"{each.bytes:,}")))
        console.print(table, soft_wrap=not console.is_terminal)


def show_comparison(a: str, b: str, found: Comparison) -> None:
    """To standard output."""
    console = Console(highlight=False)
    if found.equal:
        data = "and their data as well" if found.same_data else "their data differ"
        _print(console, f"Configuration, tokenizer and tensors are equal; {data}.")
        return
    _print(console, f"- {a}")
    _print(console, f"+ {b}")
    for title, part in (
        ("configuration", found.configuration),
        ("tokenizer", found.tokenizer),
        ("tensors", found.tensors),
    ):
        if part:
            _print(console, f"\n{title}")
        for each in part[:_SHOWN]:
            _print(console, f"  {each.what}: {_short(each.a)} → {_short(each.b)}")
        if len(part) > _SHOWN:
            _print(console, f"  {len(part) - _SHOWN} more")


def _short(value: Any) -> str:
    text = "-" if value is None else " ".join(str(value).split())
    return text if len(text) <= _WIDE else f"{text[:_WIDE]}… ({len(text)} characters)"


def _facts(model: ModelFile) -> list[tuple[str, Any]]:
    size, packed, mapped = model.dimensions, model.quantization, ", mapped" if model.mapped else ""
    count = model.parameters
    active = f", {count.active:,} of them for each token" if count.active != count.total else ""
    mix = ", ".join(f"{dtype} {share.tensors}" for dtype, share in list(packed.mix.items())[:_MIX])
    return [
        ("name", model.name),
        ("format", " ".join(filter(None, (model.format.value, model.version)))),
        ("architecture", model.architecture),
        ("licence", model.licence),
        ("parameters", f"{count.total:,}{active}"),
        ("weights", f"{packed.label}, {packed.bits_per_weight:.2f} bits each ({mix})"),
        ("size", f"{model.total_bytes:,} bytes in {len(model.files)} file(s){mapped}"),
        ("context", size.context_length and f"{size.context_length:,} tokens"),
        ("layers", size.layers and f"{size.layers} of width {size.hidden_size}"),
        ("attention", _attention(model)),
        ("experts", _experts(model)),
        ("adapter", _adapter(model)),
        ("vocabulary", _vocabulary(model)),
        ("chat template", ", ".join(each.name for each in model.chat_templates)),
        ("tensors", str(len(model.tensors))),
        ("fingerprint", model.fingerprint),
        ("served", f"no: {reason}" if (reason := refusal(model)) else None),
    ]


def _attention(model: ModelFile) -> str | None:
    found = model.attention
    if found is None:
        return None
    window = f", window of {found.sliding_window:,} tokens" if found.sliding_window else ""
    return (
        f"{found.kind.value}, {found.heads} heads, {found.kv_heads} for keys and values,"
        f" {found.head_dim} wide{window}{'' if found.causal else ', both ways (encoder)'}"
    )


def _experts(model: ModelFile) -> str | None:
    found = model.experts
    if found is None:
        return None
    return f"{found.total}, {found.active} for each token, {found.shared} shared"


def _adapter(model: ModelFile) -> str | None:
    found = model.adapter
    if found is None:
        return None
    modules = ", ".join(found.target_modules)
    return f"{found.type}, rank {found.rank}, on {modules}, of {found.base_model}"


def _vocabulary(model: ModelFile) -> str | None:
    rows = (model.tokenizer and model.tokenizer.tokens) or model.dimensions.vocab_size
    special = model.tokenizer.special if model.tokenizer else {}
    named = ", ".join(f"{role} {token.text}" for role, token in special.items() if token.text)
    return f"{rows:,}{f' ({named})' if named else ''}" if rows else None


def _estimate_facts(found: Estimate) -> list[tuple[str, Any]]:
    ask, verdict = found.ask, found.verdict
    device = f"{ask.tensor_parallel} GPU(s)" if ask.gpu else "CPU"
    answer = "yes" if verdict.fits else "no"
    return [
        ("on", f"{device} with {in_gb(ask.memory_bytes)}{' each' if ask.gpu else ''}"),
        ("weights", ", ".join(f"{name} {in_gb(size)}" for name, size in found.weights.items())),
        ("KV cache", _cache(found)),
        ("for the engine", f"{in_gb(found.reserved_bytes)} (assumed)"),
        ("for the cache", in_gb(found.cache_bytes)),
        ("sequences", found.sequences is not None and f"{found.sequences:,.1f} at once"),
        ("longest", found.longest and f"{found.longest:,} tokens"),
        ("can be served", f"{answer}: {verdict.reason}"),
        ("nearest", verdict.nearest),
    ]


def _cache(found: Estimate) -> str | None:
    if not found.kv_bytes_per_token:
        return None
    whole = f"{in_gb(found.kv_bytes_per_sequence)} for {found.context:,} tokens"
    return f"{found.kv_bytes_per_token:,} bytes a token, {whole}"


def _print_rows(console: Console, rows: list[tuple[str, Any]]) -> None:
    shown = [(label, str(value)) for label, value in rows if value]
    width = max(len(label) for label, _ in shown) + 2
    if not console.is_terminal:
        # A line for each fact, for scripts and for people who redirect.
        for label, value in shown:
            _print(console, f"{label:<{width}}{value}")
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    for label, value in shown:
        table.add_row(label, _text(value))
    console.print(table)


def _print(console: Console, text: str) -> None:
    console.print(_text(text), soft_wrap=not console.is_terminal)


def _text(text: str) -> Text:
    return Text(printable(text.encode("utf-8", "replace").decode()))
