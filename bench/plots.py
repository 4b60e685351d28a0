"""The pictures of docs/performance.md: SVG files that need nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from statistics import median

from bench.goals import Verdict
from bench.values import OURS, THEIRS, Row, Value, rounds
from llmserve.loadtest.svg import ticks

COLOURS = {OURS: "#2f8f6b", THEIRS: "#c2703d"}
WIDTH = 720
BAR, LEVELS = 16, (1, 8, 16, 32, 64)
CPU_SUFFIXES = (": CPU µs per token",)


def pictures(
    values: Sequence[Value], rows: Sequence[Row], verdicts: Sequence[Verdict]
) -> dict[str, str]:
    """The content of each file, by its name."""
    cpu = [row for row in rows if row.measure.endswith(CPU_SUFFIXES)]
    ratios = [each for each in verdicts if each.goal.ratio and each.middle is not None]
    drawn = {
        "performance-goals.svg": ratio_plot("Goals against vllm serve: llmserve ÷ vllm", ratios),
        "performance-cpu.svg": bars("Front-end CPU per streamed token, µs", cpu),
    }
    for name, prefix, model in (("tiny", "", "tiny model"), ("demo", "demo ", "SmolLM2-135M")):
        title = f"Output tokens/s by streams, {model}"
        lines = _speeds(values, f"{prefix}chat stream")
        drawn[f"performance-speed-{name}.svg"] = levels(title, lines)
    return drawn


def bars(title: str, rows: Sequence[Row]) -> str:
    """A pair of horizontal bars for each row."""
    most = max((max(row.ours or 0, row.theirs or 0) for row in rows), default=0)
    scale = _Scale(190, WIDTH - 60, ticks(most))
    parts, y = [_legend(), *scale.grid(2 * BAR * len(rows) + 10 * len(rows))], 50
    for row in rows:
        parts.append(_text(180, y + BAR + 4, row.measure.partition(":")[0], "end"))
        for name, value in ((OURS, row.ours), (THEIRS, row.theirs)):
            if value is not None:
                end = scale.place(value)
                parts.append(
                    f'<rect x="190" y="{y}" width="{end - 190:.1f}" height="{BAR - 2}" '
                    f'fill="{COLOURS[name]}"/>' + _text(end + 5, y + 11, f"{value:,.1f}")
                )
            y += BAR
        y += 10
    return _svg(title, y + 30, parts)


def ratio_plot(title: str, verdicts: Sequence[Verdict]) -> str:
    """For each check the rounds' range and median as a line and a dot, and its bound as a
    bar across."""
    most = max((max(each.greatest, each.goal.bound) for each in verdicts), default=0)
    scale = _Scale(330, WIDTH - 30, ticks(min(most, 4.0)))
    parts, y = scale.grid(24 * len(verdicts)), 50
    one = scale.place(1)
    parts.append(f'<path d="M{one:.1f} 44V{50 + 24 * len(verdicts)}" stroke="#555"/>')
    for each in verdicts:
        assert each.middle is not None
        middle, limit = scale.place(each.middle), scale.place(each.goal.bound)
        colour = COLOURS[OURS] if each.met else "#c0392b"
        label = each.check.partition(" ÷ ")[0]
        arrow = "≥" if each.goal.at_least else "≤"
        parts.append(
            _text(320, y + 14, f"{label} ({arrow} {each.goal.bound:g})", "end")
            + f'<path d="M{scale.place(each.least):.1f} {y + 10}H{scale.place(each.greatest):.1f}" '
            f'stroke="{colour}" stroke-width="2"/>'
            f'<circle cx="{middle:.1f}" cy="{y + 10}" r="4" fill="{colour}"/>'
            f'<path d="M{limit:.1f} {y + 2}v16" stroke="#222" stroke-width="2"/>'
        )
        y += 24
    return _svg(title, y + 30, parts)


@dataclass(frozen=True, slots=True)
class Line:
    """One server: by level the median, the least and the greatest round."""

    name: str
    points: Sequence[tuple[int, float, float, float]]


def levels(title: str, lines: Sequence[Line]) -> str:
    """Lines over levels of concurrency, which are evenly spaced, with the rounds' range."""
    marks = ticks(max((point[3] for line in lines for point in line.points), default=0))
    left, right, top, bottom = 70, WIDTH - 30, 60, 300

    def place(level: int, value: float) -> tuple[float, float]:
        x = left + 40 + (right - left - 80) * LEVELS.index(level) / (len(LEVELS) - 1)
        return x, bottom - (bottom - top) * value / marks[-1]

    parts = [_legend()]
    for mark in marks:
        y = place(1, mark)[1]
        parts.append(f'<path d="M{left} {y:.1f}H{right}" stroke="#ddd"/>')
        parts.append(_text(left - 8, y + 4, f"{mark:,g}", "end"))
    for level in LEVELS:
        parts.append(_text(place(level, 0)[0], bottom + 18, str(level), "middle"))
    for line in lines:
        colour = COLOURS[line.name]
        spots = [place(level, middle) for level, middle, _, _ in line.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for (x, y), (level, _, least, greatest) in zip(spots, line.points, strict=True):
            low, high = place(level, least)[1], place(level, greatest)[1]
            parts.append(f'<path d="M{x:.1f} {low:.1f}V{high:.1f}" stroke="{colour}"/>')
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>')
    return _svg(title, bottom + 40, parts)


def _speeds(values: Sequence[Value], case: str) -> list[Line]:
    lines = []
    for server in (OURS, THEIRS):
        points = []
        for level in LEVELS:
            found = rounds(values, f"{case} c={level}: tokens/s", server)
            if found:
                points.append((level, median(found), min(found), max(found)))
        lines.append(Line(server, points))
    return lines


@dataclass(frozen=True, slots=True)
class _Scale:
    """From values to places across."""

    left: float
    right: float
    marks: Sequence[float]

    def place(self, value: float) -> float:
        share = min(value / self.marks[-1], 1.02)
        return self.left + (self.right - self.left) * share

    def grid(self, height: float) -> list[str]:
        return [
            f'<path d="M{self.place(mark):.1f} 44V{50 + height:.0f}" stroke="#ddd"/>'
            + _text(self.place(mark), 66 + height, f"{mark:.6g}", "middle")
            for mark in self.marks
        ]


def _legend() -> str:
    return "".join(
        f'<rect x="{WIDTH - 200 + 100 * place}" y="14" width="12" height="12" fill="{colour}"/>'
        + _text(WIDTH - 183 + 100 * place, 24, name)
        for place, (name, colour) in enumerate(COLOURS.items())
    )


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(title: str, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img" '
        f'font-family="sans-serif" font-size="12" fill="#333">\n<title>{escape(title)}</title>\n'
        f'<rect width="{WIDTH}" height="{height:.0f}" fill="#fff"/>\n'
        f'<text x="16" y="25" font-size="15">{escape(title)}</text>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )
