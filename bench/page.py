"""docs/performance.md: what stands between its markers is written here, the rest by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.client import BenchError
from bench.goals import GOALS, Verdict, bound, judge
from bench.plots import pictures
from bench.report import number, spread, verdict_cells
from bench.values import Found, Row, rows

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
BEGIN, END = "<!-- bench: begin, written by make bench -->", "<!-- bench: end -->"
CLOSE = 0.03
"""A ratio this near to 1 is no gain."""


def around(path: Path) -> tuple[str, str]:
    """What stands before and after the written part. Raises ``BenchError`` for a page
    without one."""
    text = path.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise BenchError(f"{path.name} has lost its markers")
    return before, after


def write_page(path: Path, found: Found, about: Mapping[str, Any], *, judged: bool = True) -> None:
    """Replace the written part of the page, and its pictures beside it. Raises
    ``BenchError``."""
    before, after = around(path)
    lines = rows(found.values)
    verdicts = judge(found.values) if judged else []
    drawn = pictures(found.values, lines, verdicts)
    body = written(found, lines, verdicts, about, list(drawn))
    path.write_text(f"{before}{BEGIN}\n\n{body}\n\n{END}{after}", encoding="utf-8")
    for name, content in drawn.items():
        (path.parent / name).write_text(content, encoding="utf-8")


def written(
    found: Found,
    lines: Sequence[Row],
    verdicts: Sequence[Verdict],
    about: Mapping[str, Any],
    images: Sequence[str],
) -> str:
    """The part between the markers."""
    parts = [
        _summary(verdicts),
        "## Goals",
        _goals(verdicts),
        "How each is computed:",
        _how(),
        *(f"![{name.removesuffix('.svg')}]({name})" for name in images),
        "## Where nothing is gained",
        _no_gain(lines),
        "## All figures",
        "Medians of the rounds. The ratio is llmserve ÷ vllm, taken in each round.",
        _figures(lines),
        "## This run",
        _about(found, about),
    ]
    return "\n\n".join(parts)


def _summary(verdicts: Sequence[Verdict]) -> str:
    measured = [each for each in verdicts if each.middle is not None]
    if not verdicts:
        return "**Not judged**: a quick run."
    if not measured:
        return "**Not measured yet**: `make bench` fills this in."
    missed = sum(not each.met for each in measured)
    text = f"**{len(measured) - missed} of {len(verdicts)} checks are met, {missed} missed"
    lacking = len(verdicts) - len(measured)
    return text + (f", {lacking} were not measured.**" if lacking else ".**")


def _goals(verdicts: Sequence[Verdict]) -> str:
    rows = []
    for verdict in verdicts:
        limit, middle, between = verdict_cells(verdict)
        name, word = verdict.goal.name, verdict.word
        word = f"**{word.lower()}**" if word == "MISSED" else word
        rows.append((name, verdict.check, limit, middle, between, word))
    return _table(("goal", "check", "bound", "median", "least … greatest", ""), rows, 2)


def _how() -> str:
    return "\n".join(f"* **{goal.name}** ({bound(goal)}): {goal.how}." for goal in GOALS)


def _no_gain(lines: Sequence[Row]) -> str:
    """What is not better than vLLM's by more than ``CLOSE``, by its measure's direction."""
    found = []
    for row in lines:
        if row.ratio is None or row.measure.endswith("frames per token"):
            continue  # Neither more nor fewer frames are a gain as such.
        more = "/s" in row.measure or row.measure.endswith("batching")
        gain = row.ratio.middle - 1 if more else 1 - row.ratio.middle
        if gain <= CLOSE:
            word = "worse" if gain < -CLOSE else "equal"
            between = spread(row.ratio.least, row.ratio.greatest)
            found.append((row.measure, f"{row.ratio.middle:.2f}", between, word))
    if not found:
        return "Nowhere in this run." if lines else "Not measured yet."
    head = ("measure", "llmserve ÷ vllm", "least … greatest", f"(±{CLOSE:.0%} is equal)")
    return _table(head, found, 1)


def _figures(lines: Sequence[Row]) -> str:
    head = ("measure", "llmserve", "vllm", "ratio", "least … greatest")
    return _table(
        head,
        [
            (
                row.measure,
                number(row.ours, row.digits),
                number(row.theirs, row.digits),
                "" if row.ratio is None else f"{row.ratio.middle:.2f}",
                "" if row.ratio is None else spread(row.ratio.least, row.ratio.greatest),
            )
            for row in lines
        ],
        1,
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], texts: int) -> str:
    """A Markdown table; the first ``texts`` columns are text, the others numbers."""
    rule = "|".join("---" if place < texts else "---:" for place in range(len(head)))
    lines = [head, *rows]
    shown = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([shown[0], f"|{rule}|", *shown[1:]])


def _about(found: Found, about: Mapping[str, Any]) -> str:
    return "\n".join(
        f"* {name}: {_plain(value)}" for name, value in {**about, **found.notes}.items()
    )


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(each)}" for name, each in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_plain(each) for each in value) or "none"
    return str(value)
