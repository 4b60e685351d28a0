"""deploy/compose.yaml and deploy/.env.example."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from llmserve.settings import Settings
from llmserve.settings_load import load_settings

SERVICE_KEYS = {
    "build",
    "cap_drop",
    "command",
    "depends_on",
    "deploy",
    "env_file",
    "environment",
    "healthcheck",
    "image",
    "init",
    "ports",
    "restart",
    "secrets",
    "security_opt",
    "shm_size",
    "stop_grace_period",
    "ulimits",
    "volumes",
}
"""The part of the Compose specification that is used; the file was checked against the
specification's own JSON schema when it was written."""


def test_the_file_has_the_shape_of_the_specification(compose: dict[str, Any]) -> None:
    assert compose.keys() == {"name", "services", "secrets", "volumes"}
    for name, service in compose["services"].items():
        assert service.keys() <= SERVICE_KEYS, name
        for secret in service.get("secrets", []):
            assert secret["source"] in compose["secrets"]
        for other in service.get("depends_on", {}):
            assert "healthcheck" in compose["services"][other]
        for mount in service["volumes"]:
            source = mount.split(":")[0]
            assert source.startswith("./") or source in compose["volumes"], mount


def test_mounted_files_exist(compose: dict[str, Any], root: Path) -> None:
    for service in compose["services"].values():
        for mount in service["volumes"]:
            source = mount.split(":")[0]
            if source.startswith("./"):
                assert (root / "deploy" / source).exists(), mount
                assert mount.endswith(":ro"), mount
    build = compose["services"]["llmserve"]["build"]
    context = (root / "deploy" / build["context"]).resolve()
    assert context == root
    assert (context / build["dockerfile"]).exists()


def test_foreign_images_are_pinned_by_digest(compose: dict[str, Any]) -> None:
    for name in ("prometheus", "grafana"):
        image = compose["services"][name]["image"]
        assert re.fullmatch(r"[\w./-]+:[\w.-]+@sha256:[0-9a-f]{64}", image)


def _environment(compose: dict[str, Any], expand: Callable[..., str], **values: str):
    given = compose["services"]["llmserve"]["environment"]
    return {name: expand(str(value), **values) for name, value in given.items()}


def test_the_server_accepts_its_environment(
    compose: dict[str, Any], dockerfile, expand: Callable[..., str]
) -> None:
    environ = dockerfile.env() | _environment(
        compose, expand, API_KEY="secret", TENSOR_PARALLEL_SIZE="2", MODEL="org/model"
    )
    settings = load_settings(environ=environ).settings
    assert [key.get_secret_value() for key in settings.auth.api_keys] == ["secret"]
    assert settings.model.source == "org/model"
    assert settings.engine == {"tensor_parallel_size": 2}
    assert settings.server.host == "0.0.0.0"  # noqa: S104


def test_the_defaults_of_the_example_are_accepted(
    compose: dict[str, Any], expand: Callable[..., str]
) -> None:
    environ = _environment(compose, expand, API_KEY="secret")
    assert load_settings(environ=environ).settings.model.source == Settings().model.source


def test_the_example_names_every_variable_and_no_other(compose: dict[str, Any], root: Path) -> None:
    text = (root / "deploy/compose.yaml").read_text()
    used = set(re.findall(r"\$\{(\w+)", text))
    used |= {secret["environment"] for secret in compose["secrets"].values()}
    example = (root / "deploy/.env.example").read_text()
    offered = dict(re.findall(r"^(\w+)=(.*)$", example, flags=re.MULTILINE))
    assert offered.keys() == used
    defaults = dict(re.findall(r"\$\{(\w+):-([^}]*)\}", text))
    assert {name: offered[name] for name in defaults} == defaults
    assert {name for name in offered if name not in defaults} == {"API_KEY", "GRAFANA_PASSWORD"}
    assert not offered["API_KEY"]


def test_secrets_stay_out_of_git(root: Path) -> None:
    assert ".env" in (root / "deploy/.gitignore").read_text().splitlines()


def test_nothing_is_published_beyond_loopback(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        for port in service["ports"]:
            assert port.startswith("127.0.0.1:"), port


def test_ports_agree(compose: dict[str, Any], expand: Callable[..., str]) -> None:
    inside = {
        name: int(expand(service["ports"][0]).rpartition(":")[2])
        for name, service in compose["services"].items()
    }
    assert inside == {"llmserve": Settings().server.port, "prometheus": 9090, "grafana": 3000}
    for name in ("prometheus", "grafana"):
        probe = compose["services"][name]["healthcheck"]["test"][-1]
        assert f":{inside[name]}/" in probe


def test_flags_exist(compose: dict[str, Any], serve_flags: frozenset[str]) -> None:
    command = compose["services"]["llmserve"]["command"]
    assert command[0] == "serve"
    assert {word for word in command if word.startswith("--")} <= serve_flags


def test_the_server_gets_time_to_drain(compose: dict[str, Any]) -> None:
    seconds = int(compose["services"]["llmserve"]["stop_grace_period"].removesuffix("s"))
    assert seconds > Settings().server.drain_timeout_s


def test_the_server_gets_gpus_shared_memory_and_the_weights_cache(
    compose: dict[str, Any], dockerfile
) -> None:
    server = compose["services"]["llmserve"]
    [device] = server["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia"
    assert device["capabilities"] == ["gpu"]
    assert server["shm_size"] == "16gb"
    cache, state = dockerfile.all("VOLUME")
    assert server["volumes"] == [f"cache:{cache}", f"state:{state}"]


def test_prometheus_reads_the_key_that_the_server_wants(
    compose: dict[str, Any], root: Path
) -> None:
    config = yaml.safe_load((root / "deploy/prometheus/prometheus.yml").read_text())
    [job] = [job for job in config["scrape_configs"] if job["job_name"] == "llmserve"]
    [secret] = compose["services"]["prometheus"]["secrets"]
    assert job["authorization"]["credentials_file"] == secret["target"]
    variable = compose["secrets"][secret["source"]]["environment"]
    assert (
        f"${{{variable}:?"
        in compose["services"]["llmserve"]["environment"]["LLMSERVE_AUTH__API_KEYS"]
    )


def test_grafana_finds_its_data_source_and_its_dashboards(
    compose: dict[str, Any], root: Path
) -> None:
    provisioning = root / "deploy/grafana/provisioning"
    [source] = yaml.safe_load((provisioning / "datasources/prometheus.yaml").read_text())[
        "datasources"
    ]
    port = compose["services"]["prometheus"]["ports"][0].rpartition(":")[2]
    assert source["url"] == f"http://prometheus:{port}"
    config = yaml.safe_load((root / "deploy/prometheus/prometheus.yml").read_text())
    assert source["jsonData"]["timeInterval"] == config["global"]["scrape_interval"]

    [provider] = yaml.safe_load((provisioning / "dashboards/llmserve.yaml").read_text())[
        "providers"
    ]
    grafana = compose["services"]["grafana"]
    mounts = dict(mount.split(":")[:2] for mount in grafana["volumes"])
    assert mounts["./grafana/dashboards"] == provider["options"]["path"]
    home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home.startswith(provider["options"]["path"])
    file = root / "deploy/grafana/dashboards" / Path(home).name
    assert json.loads(file.read_text())["uid"]
