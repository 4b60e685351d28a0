"""The run as tables of text, for the terminal and for the HTML report alike."""

from __future__ import annotations

from dataclasses import dataclass

from llmserve.loadtest.compare import Ratio
from llmserve.loadtest.figures import METRICS
from llmserve.loadtest.results import Result

NAMES = "AB"
UNKNOWN = "—"

_COLUMNS = ("mean", "median", "p90", "p99", "max")
_COMPARED = (
    ("output tokens/s", "output_throughput"),
    ("tokens/s, both ways", "total_token_throughput"),
    ("requests/s", "request_throughput"),
    ("goodput, requests/s", "request_goodput"),
    *(
        (f"{metric.upper()} {label}, ms", f"{name}_{metric}_ms")
        for metric in METRICS
        for label, name in (("mean", "mean"), ("p50", "median"), ("p99", "p99"))
    ),
)


@dataclass(frozen=True, slots=True)
class Table:
    """One table. ``detail``: it can be left out where there is little room."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    detail: bool = False


def number(value: float | None) -> str:
    """Three significant digits, thousands apart; whole numbers whole."""
    if value is None:
        return UNKNOWN
    if value == int(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"


def level_name(result: Result, level: float) -> str:
    """The load of a step, in words."""
    return f"{level:g} req/s" if result.plan.load.kind == "open" else f"{level:g} at once"


def tables(result: Result) -> list[Table]:
    """All tables of a run: medians over the rounds, failures over all of them."""
    found = [_facts(result), _overview(result)]
    for level in result.plan.load.levels:
        if len(result.urls) == 2:
            found.append(_comparison(result, level))
        found += [_latencies(result, which, level) for which in range(len(result.urls))]
    failures = _failures(result)
    return [*found, failures] if failures.rows else found


def _facts(result: Result) -> Table:
    plan, workload, load = result.plan, result.plan.workload, result.plan.load
    bounds = [f"{load.seconds:g} s" if load.seconds else "", f"{load.requests} requests"]
    parts = bounds if load.requests else bounds[:1]
    asked = (
        f"ShareGPT file {workload.file.name}"
        if workload.file
        else f"synthetic, {workload.prompts} tokens"
    )
    if workload.prefix_tokens and not workload.file:
        asked += (
            f"; {workload.prefix_share:.0%} with one of {workload.prefix_groups} shared "
            f"prefixes of {workload.prefix_tokens} tokens"
        )
    answers = f"at most {workload.answers} tokens" if workload.answers else "as long as in the file"
    loop = f"open loop, {load.pattern} arrivals" if load.kind == "open" else "closed loop"
    rows = [
        (f"server {NAMES[i]}" if len(result.urls) > 1 else "server", f"{url}, model {model}")
        for i, (url, model) in enumerate(zip(result.urls, result.models, strict=True))
    ]
    rows += [
        ("endpoint", plan.endpoint),
        ("load", f"{loop}, each step {', '.join(filter(None, parts))}; {plan.rounds} round(s)"),
        ("prompts", asked),
        ("answers", answers),
        ("seed", str(plan.seed)),
    ]
    if plan.objectives:
        required = f"; required: {100 * plan.require:g} % of all requests" if plan.require else ""
        rows.append(("objectives", ", ".join(map(str, plan.objectives)) + required))
    if plan.body:
        rows.append(("extra fields", ", ".join(plan.body)))
    return Table("What was measured", ("", ""), tuple(rows))


def _overview(result: Result) -> Table:
    head = ["load", "done", "failed", "req/s", "tok/s", "TTFT p50", "p99", "ITL p50", "p99"]
    head.append("client")
    if result.plan.objectives:
        head += ["in SLO", "goodput"]
    rows = []
    for level in result.plan.load.levels:
        for which in range(len(result.urls)):
            rows.append(_overview_row(result, which, level))
    return Table(
        "Steps: output tokens/s, latencies in ms, CPU of the client, medians of rounds",
        tuple(head),
        tuple(rows),
    )


def _overview_row(result: Result, which: int, level: float) -> tuple[str, ...]:
    figures = result.medians(which, level)
    samples = result.at(which, level)
    name = level_name(result, level)
    row = [f"{name}, {NAMES[which]}" if len(result.urls) > 1 else name]
    row += [
        f"{sum(each.figures.completed for each in samples):,}",
        f"{sum(each.figures.failed for each in samples):,}",
    ]
    keys = ["request_throughput", "output_throughput"]
    keys += [f"{p}_{metric}_ms" for metric in ("ttft", "itl") for p in ("median", "p99")]
    row += [number(figures.get(key)) for key in keys]
    row.append(f"{max(each.cost.cpu_share for each in samples):.0%}")
    if result.plan.objectives:
        row += [f"{figures['slo_attainment']:.1%}", number(figures["request_goodput"])]
    return tuple(row)


def _latencies(result: Result, which: int, level: float) -> Table:
    figures = result.medians(which, level)
    where = f", server {NAMES[which]}" if len(result.urls) > 1 else ""
    rows = tuple(
        (metric.upper(), *(number(figures.get(f"{name}_{metric}_ms")) for name in _COLUMNS))
        for metric in METRICS
    )
    head = ("latency, ms", "mean", "p50", "p90", "p99", "max")
    return Table(f"{level_name(result, level)}{where}", head, rows, detail=True)


def _comparison(result: Result, level: float) -> Table:
    ours, theirs = (result.medians(which, level) for which in (0, 1))
    ratios = result.ratios(level)
    rows = [
        (label, number(ours[key]), number(theirs.get(key)), *_ratio(ratios.get(key)))
        for label, key in _COMPARED
        if key in ours
    ]
    head = ("median of rounds", "A", "B", "A ÷ B", "least … greatest")
    return Table(f"A against B at {level_name(result, level)}", head, tuple(rows))


def _ratio(ratio: Ratio | None) -> tuple[str, str]:
    if ratio is None:
        return UNKNOWN, UNKNOWN
    return f"{ratio.middle:.3f}", f"{ratio.least:.3f} … {ratio.greatest:.3f}"


def _failures(result: Result) -> Table:
    said: dict[tuple[str, str], str] = {}
    counts: dict[tuple[str, str], int] = {}
    for sample in result.samples:
        name = level_name(result, sample.level)
        where = f"{name}, {NAMES[sample.target]}" if len(result.urls) > 1 else name
        for record in sample.records:
            if record.failure is not None:
                key = (where, record.failure)
                counts[key] = counts.get(key, 0) + 1
                said.setdefault(key, record.detail)
    return Table(
        "Failed requests",
        ("load", "kind", "count", "the first one said"),
        tuple((*key, f"{counts[key]:,}", said[key]) for key in counts),
    )
