"""JSON and HTML: they hold the figures, and nothing from elsewhere."""

from __future__ import annotations

import asyncio
import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from loadtest_server import Answer, scripted
from test_loadtest_session import Silent, closed, plan

from llmserve.loadtest.figures import Objective
from llmserve.loadtest.plan import Address
from llmserve.loadtest.report_html import as_html
from llmserve.loadtest.report_json import as_json
from llmserve.loadtest.results import Result
from llmserve.loadtest.session import run
from llmserve.loadtest.svg import Series, plot, ticks
from llmserve.loadtest.tables import tables


@pytest.fixture(scope="module")
def result() -> Result:
    """Two servers at two levels; one request in four fails."""

    def script(number: int, body: Any) -> Answer:
        return Answer(status=429 if number % 4 == 3 else 200, first=0.01)

    with scripted(script) as first, scripted() as second:
        given = plan(
            first,
            second,
            addresses=(Address(first.url, "<b>&", "sk-secret"), Address(second.url, None)),
            load=closed(1, 2),
            rounds=2,
            objectives=(Objective("ttft", 1.0),),
            require=0.9,
        )
        return asyncio.run(run(given, Silent()))


class Tags(HTMLParser):
    """Which elements are opened, with their attributes, and the text between them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.opened: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.opened.append(tag)
        self.attributes += attrs
        if tag not in ("meta",):
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.opened.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_html_report_needs_nothing_but_itself(result: Result) -> None:
    html = as_html(result, "today")
    page = Tags(html)
    assert not {"script", "link", "img", "iframe", "object"} & set(page.opened)
    assert not {"href", "src", "srcset", "xlink:href"} & {name for name, _ in page.attributes}
    assert "url(" not in html
    assert "@import" not in html
    # The only addresses are those of the servers, as text.
    shown = set(re.findall(r"https?://[^\s<,]+", html))
    assert shown == set(result.urls)
    assert "prefers-color-scheme: dark" in html


def test_the_html_report_holds_the_figures_and_plots(result: Result) -> None:
    page = Tags(as_html(result, "today"))
    for table in tables(result):
        assert table.title in page.text
        for row in table.rows:
            assert all(cell in page.text for cell in row)
    assert page.opened.count("svg") == 9
    assert "model <b>&" in page.text
    assert "HTTP 429" in page.text
    assert "sk-secret" not in as_html(result, "today")


def test_the_json_report_holds_everything_measured(result: Result) -> None:
    data = json.loads(json.dumps(as_json(result, details=True)))
    assert data["format"] == 1
    assert data["missed_levels"] == [1, 2]
    assert data["servers"]["A"] == {"url": result.urls[0], "model": "<b>&"}
    assert [(each["server"], each["level"], each["round"]) for each in data["samples"]] == [
        (name, level, number) for level in (1, 2) for number in (0, 1) for name in "AB"
    ]
    sample = data["samples"][0]
    assert sample["figures"]["completed"] == 6
    assert sample["figures"]["slo_attainment"] == 0.75
    assert sample["failures"] == {"HTTP 429": 2}
    assert sample["client"]["cpu_share"] > 0
    assert len(sample["requests"]) == 8
    good = next(each for each in sample["requests"] if each["failure"] is None)
    assert good["ttft_ms"] >= 9
    assert len(good["itl_ms"]) == 3
    step = data["steps"][0]
    assert step["ratios"]["median_ttft_ms"]["middle"] > 1
    assert set(step["medians"]) == {"A", "B"}
    assert "sk-secret" not in json.dumps(data)
    assert "requests" not in as_json(result, details=False)["samples"][0]


@pytest.mark.parametrize(
    ("most", "expected"),
    [(0, [0, 1]), (1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (7, [0, 2, 4, 6, 8]), (120, [0, 50, 100, 150])],
)
def test_ticks_are_round_numbers(most: float, expected: list[float]) -> None:
    assert ticks(most) == pytest.approx(expected)


def test_a_plot_maps_values_to_places() -> None:
    drawn = plot("t", "x", "y", [Series("s", [(0, 0), (10, 100)])])
    found = re.search(r'points="([\d.]+),([\d.]+) ([\d.]+),([\d.]+)"', drawn)
    assert found
    left, low, right, high = (float(each) for each in found.groups())
    assert (left, right) == (58, 508)
    assert (low, high) == (258, 34)
    assert plot("t", "x", "y", [Series("s", [])]) == ""
