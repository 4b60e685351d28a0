"""docs/deploy.md: what it tells people to type exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from llmserve.settings import Settings
from llmserve.settings_keys import setting_keys


@pytest.fixture(scope="module")
def page(root: Path) -> str:
    return (root / "docs/deploy.md").read_text()


def test_files_exist(page: str, root: Path) -> None:
    private = {".env", "llmserve.env"}
    for path in set(re.findall(r"\bdeploy/[\w./-]+|Dockerfile\.\w+", page)):
        assert (root / path.rstrip(".")).exists() or Path(path).name in private, path


def test_flags_and_variables_exist(page: str, serve_flags: frozenset[str]) -> None:
    commands = re.findall(r"llmserve(?::\w+)? serve (.*)", page.replace("\\\n", " "))
    flags = {flag for command in commands for flag in re.findall(r"--[a-z-]+", command)}
    assert flags
    assert flags <= serve_flags

    variables = {f"LLMSERVE_{name.upper().replace('.', '__')}" for name in setting_keys()}
    used = set(re.findall(r"LLMSERVE_[A-Z]+__[A-Z_]+", page))
    assert used - variables == {"LLMSERVE_SECTION__KEY", "LLMSERVE_ENGINE__NAME"}


def test_settings_that_are_named_exist_with_the_default_that_is_named(page: str) -> None:
    keys = setting_keys()
    sections = "|".join(set(Settings.model_fields) - {"engine"})
    for name in re.findall(rf"\b((?:{sections})\.[a-z_]+)\b", page):
        assert name in keys, name
    said = dict(re.findall(r"`(\w+\.\w+)`\*?\*? \((\d+) (?:s|MiB)\)", page))
    assert said == {
        "server.drain_timeout_s": f"{keys['server.drain_timeout_s'].default:.0f}",
        "server.request_timeout_s": f"{keys['server.request_timeout_s'].default:.0f}",
        "server.keep_alive_s": f"{keys['server.keep_alive_s'].default:.0f}",
        "limits.max_body_bytes": f"{keys['limits.max_body_bytes'].default // 2**20}",
    }


def test_the_pod_uses_routes_ports_and_paths_that_exist(
    page: str, dockerfile, routes: frozenset[str], serve_flags: frozenset[str]
) -> None:
    [block] = re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL)
    pod = yaml.safe_load(block)["spec"]
    [container] = pod["containers"]
    assert container["ports"][0]["containerPort"] == Settings().server.port
    assert container["livenessProbe"]["httpGet"]["path"] == "/livez"
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert {"/livez", "/readyz"} <= routes
    assert {word for word in container["args"] if word.startswith("--")} <= serve_flags
    assert f"{pod['securityContext']['runAsUser']}" == dockerfile.all("USER")[-1].split(":")[0]
    mounts = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
    assert [mounts["cache"], mounts["state"]] == dockerfile.all("VOLUME")
    assert mounts.keys() == {each["name"] for each in pod["volumes"]}
    grace = pod["terminationGracePeriodSeconds"]
    env = {each["name"]: each.get("value") for each in container["env"]}
    pause = float(env["LLMSERVE_SERVER__DRAIN_GRACE_S"])
    assert grace > Settings().server.drain_timeout_s + pause
