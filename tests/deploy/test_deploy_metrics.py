"""Dashboards, alerts and the scrape configuration against the metrics that exist."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from llmserve.errors import Overloaded
from llmserve.gateway.entry import Entry
from llmserve.observability.metrics import Metrics, State
from llmserve.settings import ServerSettings
from llmserve.types import Outcome

COUNTERS = {
    "llmserve_requests_total": {"route", "model", "outcome"},
    "llmserve_prompt_tokens_total": {"model"},
    "llmserve_cached_prompt_tokens_total": {"model"},
    "llmserve_completion_tokens_total": {"model"},
    "llmserve_engine_restarts_total": set(),
    "llmserve_refused_requests_total": {"route", "code"},
    "llmserve_cache_hits_total": set(),
    "llmserve_cache_misses_total": set(),
    "vllm:prompt_tokens_total": {"model_name", "engine"},
    "vllm:generation_tokens_total": {"model_name", "engine"},
    "vllm:request_success_total": {"model_name", "engine", "finished_reason"},
}
GAUGES = {
    "llmserve_requests_in_flight": {"model"},
    "llmserve_requests_waiting": {"model"},
    "llmserve_waiting_prompt_tokens": {"model"},
    "llmserve_cache_bytes": set(),
    "llmserve_ready": set(),
    "llmserve_draining": set(),
    "llmserve_build_info": {"version", "engine"},
    "vllm:num_requests_running": {"model_name", "engine"},
    "vllm:num_requests_waiting": {"model_name", "engine"},
    "vllm:kv_cache_usage_perc": {"model_name", "engine"},
    "up": set(),
}
HISTOGRAMS = {
    "llmserve_time_to_first_token_seconds": {"model"},
    "llmserve_inter_token_latency_seconds": {"model"},
    "llmserve_request_duration_seconds": {"route", "model"},
    "llmserve_queue_seconds": {"model"},
    "vllm:time_to_first_token_seconds": {"model_name", "engine"},
    "vllm:inter_token_latency_seconds": {"model_name", "engine"},
    "vllm:e2e_request_latency_seconds": {"model_name", "engine"},
}
OUTCOMES = {
    "completed",
    "invalid",
    "rejected",
    "failed",
    "timeout",
    "cancelled",
    "disconnected",
}
LABELS = (
    COUNTERS
    | GAUGES
    | {f"{name}_bucket": {*labels, "le"} for name, labels in HISTOGRAMS.items()}
    | {f"{name}_{part}": labels for name, labels in HISTOGRAMS.items() for part in ("sum", "count")}
)
"""Every series that an expression may use, with its labels."""

TARGET_LABELS = {"job", "instance"}
VARIABLES = {"$__rate_interval": "1m", "$__range": "1h", "$model": ".*"}


def _dashboards(root: Path) -> list[Path]:
    found = sorted((root / "deploy/grafana/dashboards").glob("*.json"))
    assert found
    return found


def _queries(dashboard: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]
    for annotation in dashboard["annotations"]["list"]:
        yield annotation["name"], annotation["expr"]


def _rules(root: Path) -> list[dict[str, Any]]:
    document = yaml.safe_load((root / "deploy/prometheus/rules.yml").read_text())
    return [rule for group in document["groups"] for rule in group["rules"]]


def _plain(expression: str) -> str:
    for variable, value in VARIABLES.items():
        expression = expression.replace(variable, value)
    assert "$" not in expression, expression
    return expression


def _problems(expression: str) -> list[str]:
    """What an expression asks for that does not exist."""
    problems: list[str] = []
    names: list[str] = []

    def visit(node: promql_parser.Expr) -> None:
        if not isinstance(node, promql_parser.VectorSelector):
            return
        names.append(node.name)
        if node.name not in LABELS:
            problems.append(f"no metric {node.name}")
            return
        known = LABELS[node.name] | TARGET_LABELS
        for matcher in node.matchers.matchers:
            if matcher.name not in known:
                problems.append(f"{node.name} has no label {matcher.name}")
            if matcher.name == "outcome":
                problems.extend(
                    f"no outcome {value}"
                    for value in matcher.value.split("|")
                    if value not in OUTCOMES
                )

    promql_parser.walk(promql_parser.parse(expression), visit)
    if not names:
        problems.append("asks for no metric")
    for labels in re.findall(r"\bby \(([^)]*)\)", expression):
        for label in re.findall(r"\w+", labels):
            if not any(label in LABELS.get(name, ()) for name in names) and (
                label not in TARGET_LABELS
            ):
                problems.append(f"groups by {label}, which nothing in it has")
    return problems


def test_the_check_finds_what_is_wrong() -> None:
    assert _problems("rate(llmserve_request_total[5m])") == ["no metric llmserve_request_total"]
    assert _problems('llmserve_ready{model="a"}') == ["llmserve_ready has no label model"]
    assert _problems('llmserve_requests_total{outcome="error"}') == ["no outcome error"]
    assert _problems("sum by (model) (vllm:num_requests_running)") == [
        "groups by model, which nothing in it has"
    ]
    assert _problems("vector(1)") == ["asks for no metric"]
    with pytest.raises(ValueError, match="unexpected"):
        _problems("sum(rate(x[5m))")


def test_dashboards_ask_for_metrics_that_exist(root: Path) -> None:
    for path in _dashboards(root):
        dashboard = json.loads(path.read_text())
        problems = {
            title: found
            for title, expression in _queries(dashboard)
            if (found := _problems(_plain(expression)))
        }
        assert not problems, path.name


def test_dashboards_can_move_between_grafanas(root: Path) -> None:
    """Every query goes through the data source variable, none through the uid of one
    installation; ids are unique and panels do not overlap."""
    for path in _dashboards(root):
        dashboard = json.loads(path.read_text())
        variables = {each["name"]: each for each in dashboard["templating"]["list"]}
        assert variables["datasource"]["type"] == "datasource"
        assert {"datasource", "model"} <= variables.keys()
        uids = re.findall(r'"uid": "([^"]*)"', path.read_text())
        assert set(uids) == {dashboard["uid"], "${datasource}"}

        panels = dashboard["panels"]
        assert len({panel["id"] for panel in panels}) == len(panels)
        cells: set[tuple[int, int]] = set()
        for panel in panels:
            place = panel["gridPos"]
            assert place["x"] + place["w"] <= 24
            covered = {
                (x, y)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            }
            assert not covered & cells, panel["title"]
            cells |= covered
            if panel["type"] != "row":
                assert panel["description"], panel["title"]
                assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]


def test_the_model_variable_is_filled_from_a_metric_that_has_models(root: Path) -> None:
    for path in _dashboards(root):
        [variable] = [
            each
            for each in json.loads(path.read_text())["templating"]["list"]
            if each["name"] == "model"
        ]
        match = re.fullmatch(r"label_values\(([\w:]+), (\w+)\)", variable["query"]["query"])
        assert match
        assert match[2] in LABELS[match[1]]


def test_the_token_dashboard_shows_what_was_promised(root: Path) -> None:
    dashboard = json.loads((root / "deploy/grafana/dashboards/token-throughput.json").read_text())
    text = "\n".join(expression for _, expression in _queries(dashboard))
    for metric in (
        "llmserve_completion_tokens_total",
        "llmserve_prompt_tokens_total",
        "vllm:generation_tokens_total",
        "vllm:prompt_tokens_total",
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:kv_cache_usage_perc",
        "llmserve_requests_in_flight",
        "llmserve_requests_total",
        "llmserve_engine_restarts_total",
        "llmserve_ready",
    ):
        assert metric in text, metric
    for histogram in (
        "llmserve_time_to_first_token_seconds",
        "llmserve_inter_token_latency_seconds",
    ):
        for quantile in ("0.5", "0.95", "0.99"):
            pattern = rf"histogram_quantile\({quantile}, .*{histogram}_bucket"
            assert re.search(pattern, text), (histogram, quantile)


def test_vllm_has_the_metrics_that_are_used() -> None:
    spec = importlib.util.find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("vLLM is not installed")
    # Read, not imported: importing vLLM takes seconds.
    source = Path(spec.submodule_search_locations[0], "v1/metrics/loggers.py").read_text()
    declared = set(re.findall(r'name="(vllm:\w+)"', source))
    ours = {name for name in (*COUNTERS, *GAUGES, *HISTOGRAMS) if name.startswith("vllm:")}
    assert {name.removesuffix("_total") for name in ours} <= declared


def test_our_series_are_those_that_the_server_exports() -> None:
    metrics = Metrics(engine="fake")
    entry = Entry("id", "/generate", model="m", outcome=Outcome.COMPLETED)
    entry.meter.add_tokens(2, entry.started)
    entry.admit()
    metrics.closed(entry)
    refused = Entry("id", "/generate")
    refused.fail(Overloaded("full"))
    metrics.closed(refused)
    text = metrics.render(State("m", ready=True, draining=False)).decode()
    exported = {
        (sample.name, frozenset(sample.labels))
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("llmserve_") and not sample.name.endswith("_created")
    }
    listed = {
        (name, frozenset(labels)) for name, labels in LABELS.items() if name.startswith("llmserve_")
    }
    assert exported == listed


def test_alerts_ask_for_metrics_that_exist_and_say_what_happened(root: Path) -> None:
    rules = _rules(root)
    for rule in rules:
        assert not _problems(rule["expr"]), rule["alert"]
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert rule["annotations"].keys() == {"summary", "description"}
    assert len({rule["alert"] for rule in rules}) == len(rules)


def test_every_alert_is_tested(root: Path) -> None:
    """Each fires in one case and stays silent in another."""
    document = yaml.safe_load((root / "tests/deploy/rules_test.yml").read_text())
    cases = [case for test in document["tests"] for case in test["alert_rule_test"]]
    fires = {case["alertname"] for case in cases if case.get("exp_alerts")}
    silent = {case["alertname"] for case in cases if not case.get("exp_alerts")}
    alerts = {rule["alert"] for rule in _rules(root)}
    assert fires == alerts
    assert silent == alerts


def test_prometheus_scrapes_a_route_and_a_port_that_exist(
    root: Path, compose: dict[str, Any], routes: frozenset[str]
) -> None:
    config = yaml.safe_load((root / "deploy/prometheus/prometheus.yml").read_text())
    [job] = [job for job in config["scrape_configs"] if job["job_name"] == "llmserve"]
    assert job["metrics_path"] in routes
    [target] = job["static_configs"][0]["targets"]
    host, _, port = target.partition(":")
    assert host in compose["services"]
    assert int(port) == ServerSettings().port
    for file in config["rule_files"]:
        assert (root / "deploy/prometheus" / file).exists()
        mounts = compose["services"]["prometheus"]["volumes"]
        assert f"./prometheus/{file}:/etc/prometheus/{file}:ro" in mounts


def _promtool(*arguments: str) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian package prometheus)")
    done = subprocess.run(
        [promtool, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_accepts_the_configuration(root: Path, tmp_path: Path) -> None:
    source = root / "deploy/prometheus"
    shutil.copy(source / "rules.yml", tmp_path)
    (tmp_path / "api_key").write_text("secret")
    # promtool wants the file with the key to be there.
    text = (source / "prometheus.yml").read_text().replace("/run/secrets/api_key", "api_key")
    (tmp_path / "prometheus.yml").write_text(text)
    _promtool("check", "config", str(tmp_path / "prometheus.yml"))


def test_alerts_fire_when_they_should(root: Path) -> None:
    _promtool("test", "rules", str(root / "tests/deploy/rules_test.yml"))
