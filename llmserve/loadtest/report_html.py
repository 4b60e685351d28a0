"""The run as one HTML file: no script, no link, nothing to load."""

from __future__ import annotations

from html import escape
from itertools import islice

from llmserve import __version__
from llmserve.loadtest.figures import Metric, Record, spread
from llmserve.loadtest.results import Result, Sample
from llmserve.loadtest.svg import Point, Series, plot
from llmserve.loadtest.tables import NAMES, Table, level_name, tables

_MOST_DOTS = 2000
_MOST_CURVES = 6

_STYLE = """
:root { color-scheme: light dark; --fg: #1b1f24; --bg: #fff; --soft: #6a737d; --rule: #d8dee4;
  --c0: #0969da; --c1: #bc4c00; --c2: #1a7f37; --c3: #8250df; --c4: #bf3989; --c5: #6e7781; }
@media (prefers-color-scheme: dark) { :root { --fg: #e6edf3; --bg: #0d1117; --soft: #9198a1;
  --rule: #30363d; --c0: #58a6ff; --c1: #f0883e; --c2: #3fb950; --c3: #bc8cff; --c4: #f778ba;
  --c5: #9198a1; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--fg); background: var(--bg);
  max-width: 1120px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--rule); text-align: right; }
th:first-child, td:first-child, .text td, .text th { text-align: left; }
.warning { border-left: 4px solid var(--c1); padding: .3rem .8rem; margin: .5rem 0; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: 1rem; }
figure { margin: 0; } svg { width: 100%; height: auto; }
svg text { fill: var(--fg); font-size: 12px; } svg .axis { fill: var(--soft); }
svg .title { font-size: 14px; font-weight: 600; } .grid { stroke: var(--rule); }
.line { fill: none; stroke-width: 2; } .line.dashed { stroke-dasharray: 5 4; }
figcaption { font-size: 13px; color: var(--soft); display: flex; flex-wrap: wrap; gap: .2rem 1rem; }
figcaption i { display: inline-block; width: 1.2rem; margin-right: .4rem; vertical-align: middle;
  border-top: 3px solid; } figcaption i.dashed { border-top-style: dashed; }
""" + "".join(
    f".line.c{n}, i.c{n} {{ stroke: var(--c{n}); border-color: var(--c{n}); }} "
    f"circle.c{n} {{ fill: var(--c{n}); }}\n"
    for n in range(6)
)


def as_html(result: Result, taken: str) -> str:
    """The report. ``taken`` says when, in words of the caller."""
    warnings = "".join(f'<p class="warning">{escape(each)}</p>' for each in result.warnings())
    plots = "".join([*_over_load(result), *_distributions(result), _over_time(result)])
    rendered = [_table(each) for each in tables(result)]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>llmserve bench, {escape(taken)}</title><style>{_STYLE}</style></head><body>"
        f"<h1>Load test of {escape(taken)}</h1>{warnings}{rendered[0]}{rendered[1]}"
        f'<h2>Plots</h2><div class="plots">{plots}</div>{"".join(rendered[2:])}'
        f"<p>Written by llmserve bench {__version__}. Latencies are those of completed requests; "
        "in an open loop TTFT and E2EL count from the scheduled time.</p></body></html>\n"
    )


def _table(table: Table) -> str:
    kind = ' class="text"' if len(table.head) == 2 or "kind" in table.head else ""
    head = "".join(f"<th>{escape(each)}</th>" for each in table.head)
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows
    )
    head = f"<thead><tr>{head}</tr></thead>" if any(table.head) else ""
    return (
        f'<h2>{escape(table.title)}</h2><div class="scroll">'
        f"<table{kind}>{head}<tbody>{rows}</tbody></table></div>"
    )


def _over_load(result: Result) -> list[str]:
    """How figures change with the load; nothing when there is one level."""
    levels = sorted(result.plan.load.levels)
    if len(levels) < 2:
        return []
    x = "requests/s" if result.plan.load.kind == "open" else "requests at once"

    def chart(title: str, unit: str, *keys: tuple[str, str]) -> str:
        series = [
            Series(
                f"{_of(result, which)}{label}".strip() or title,
                _points(result, which, levels, key),
                colour=which,
                dashed=bool(dash),
            )
            for which in range(len(result.urls))
            for dash, (label, key) in enumerate(keys)
        ]
        return plot(title, x, unit, series)

    charts = [chart("Output tokens per second", "tokens/s", ("", "output_throughput"))]
    if result.plan.objectives:
        charts.append(chart("Goodput", "requests/s", ("", "request_goodput")))
    charts += [
        chart(title, "ms", ("p50", f"median_{key}_ms"), ("p99", f"p99_{key}_ms"))
        for title, key in (
            ("Time to first token", "ttft"),
            ("Inter-token latency", "itl"),
            ("End-to-end latency", "e2el"),
        )
    ]
    return charts


def _points(result: Result, which: int, levels: list[float], key: str) -> list[Point]:
    found = [(level, result.medians(which, level).get(key)) for level in levels]
    return [(level, value) for level, value in found if value is not None]


def _distributions(result: Result) -> list[str]:
    """Which share of the requests (or gaps) took how long at most, over all rounds."""
    levels = result.plan.load.levels
    every = -(-len(levels) * len(result.urls) // _MOST_CURVES)
    shown = [(which, level) for level in levels[::every] for which in range(len(result.urls))]
    titles: tuple[tuple[Metric, str], ...] = (
        ("ttft", "Time to first token, distribution"),
        ("itl", "Inter-token latency, distribution"),
        ("e2el", "End-to-end latency, distribution"),
    )
    return [
        plot(
            title,
            "ms",
            "% of all",
            [
                Series(
                    f"{_of(result, which)}{level_name(result, level)}",
                    _cumulative(result.at(which, level), metric),
                    colour=place,
                )
                for place, (which, level) in enumerate(shown)
            ],
        )
        for metric, title in titles
    ]


def _cumulative(samples: list[Sample], metric: Metric) -> list[Point]:
    values = [
        value for each in samples for record in each.records for value in _of_one(record, metric)
    ]
    if not values:
        return []
    return [(value * 1000, float(p)) for p, value in enumerate(spread(values).quantiles)]


def _of_one(record: Record, metric: Metric) -> list[float]:
    if record.failure is not None:
        return []
    match metric:
        case "ttft":
            return [record.ttft]
        case "itl":
            return record.itl
        case "e2el":
            return [record.e2el]
        case "tpot":
            return [] if record.tpot is None else [record.tpot]


def _over_time(result: Result) -> str:
    """The time to first token of each request of the highest load, in the first round: what
    grows there is a queue."""
    level = max(result.plan.load.levels)
    series = []
    for which in range(len(result.urls)):
        sample = result.at(which, level)[0]
        done = (each for each in sample.records if each.failure is None)
        dots = [(each.due - sample.begin, each.ttft * 1000) for each in islice(done, _MOST_DOTS)]
        name = f"{_of(result, which)}{level_name(result, level)}"
        series.append(Series(name, dots, colour=which, marks_only=True))
    return plot("Time to first token of each request", "s since the begin", "ms", series)


def _of(result: Result, which: int) -> str:
    return f"{NAMES[which]} " if len(result.urls) > 1 else ""
