"""Plots as inline SVG, without a library: lines or points over two axes.

Colours are CSS variables of the page, so that one file is readable on light and on dark.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

Point = tuple[float, float]

_WIDTH, _HEIGHT = 520, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 34, 42
_TICKS = 5
_COLOURS = 6


@dataclass(frozen=True, slots=True)
class Series:
    """One line or one cloud of points. ``colour`` counts from 0."""

    name: str
    points: Sequence[Point]
    colour: int = 0
    dashed: bool = False
    marks_only: bool = False


def plot(title: str, x_label: str, y_label: str, series: Sequence[Series]) -> str:
    """A plot with both axes from 0, or nothing when no series has a point."""
    points = [point for each in series for point in each.points]
    if not points:
        return ""
    axes = _Axes(max(x for x, _ in points), max(y for _, y in points))
    parts = [
        f'<figure><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">',
        f'<text class="title" x="{_LEFT}" y="18">{escape(title)}</text>',
        *axes.grid(),
        *(_drawn(each, axes) for each in series),
        f'<text class="axis" x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 6}" text-anchor="end">'
        f"{escape(x_label)}</text>",
        f'<text class="axis" x="4" y="{_TOP - 4}">{escape(y_label)}</text>',
        "</svg>",
        _legend(series),
        "</figure>",
    ]
    return "".join(parts)


def ticks(most: float) -> list[float]:
    """Round numbers from 0 to at least ``most``: steps of 1, 2 or 5 times a power of ten."""
    if not most > 0:
        return [0.0, 1.0]
    rough = most / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(each * power for each in (1, 2, 5, 10) if each * power >= rough * (1 - 1e-9))
    count = math.ceil(most / step - 1e-9)
    return [step * index for index in range(count + 1)]


class _Axes:
    """From values to places in the picture."""

    def __init__(self, x_most: float, y_most: float) -> None:
        self._x, self._y = ticks(x_most), ticks(y_most)

    def place(self, point: Point) -> Point:
        across = (_WIDTH - _LEFT - _RIGHT) * point[0] / self._x[-1]
        up = (_HEIGHT - _TOP - _BOTTOM) * point[1] / self._y[-1]
        return _LEFT + across, _HEIGHT - _BOTTOM - up

    def grid(self) -> list[str]:
        """Lines and their numbers."""
        parts = []
        for value in self._y:
            _, y = self.place((0, value))
            parts.append(
                f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>'
                f'<text class="axis" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">'
                f"{value:.6g}</text>"
            )
        for value in self._x:
            x, _ = self.place((value, 0))
            parts.append(
                f'<text class="axis" x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">'
                f"{value:.6g}</text>"
            )
        return parts


def _drawn(series: Series, axes: _Axes) -> str:
    colour = f"c{series.colour % _COLOURS}"
    places = [axes.place(point) for point in series.points]
    dots = ""
    if series.marks_only or len(places) <= 20:
        dots = "".join(
            f'<circle class="{colour}" cx="{x:.1f}" cy="{y:.1f}" r="2.5">'
            f"<title>{escape(series.name)}: {point[0]:.6g}, {point[1]:.4g}</title></circle>"
            for (x, y), point in zip(places, series.points, strict=True)
        )
    if series.marks_only:
        return dots
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dashed = " dashed" if series.dashed else ""
    return f'<polyline class="line {colour}{dashed}" points="{path}"/>{dots}'


def _legend(series: Sequence[Series]) -> str:
    entries = "".join(
        f'<span><i class="c{each.colour % _COLOURS}{" dashed" if each.dashed else ""}"></i>'
        f"{escape(each.name)}</span>"
        for each in series
        if each.points
    )
    return f"<figcaption>{entries}</figcaption>"
