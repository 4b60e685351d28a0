"""Where settings come from, which source wins, and how mistakes are reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmserve.errors import ConfigError
from llmserve.settings import Settings
from llmserve.settings_keys import setting_keys
from llmserve.settings_load import Flag, Loaded, load_settings, masked


def load(
    tmp_path: Path, yaml: str | None = None, environ: dict[str, str] | None = None, **more: Any
) -> Loaded:
    config = None
    if yaml is not None:
        config = tmp_path / "s.yaml"
        config.write_text(yaml)
    return load_settings(environ=environ or {}, config=config, **more)


def mistakes(tmp_path: Path, *args: Any, **more: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, *args, **more)
    return [line.replace(f"{tmp_path}/", "") for line in caught.value.message.splitlines()]


def test_nothing_given_gives_the_defaults() -> None:
    loaded = load_settings(environ={"PATH": "/bin", "LLMSERVE_CACHE": "x"})
    assert loaded.settings == Settings()
    assert loaded.sources == dict.fromkeys(setting_keys(), "default")


def test_precedence(tmp_path: Path) -> None:
    layers = {
        "yaml": "server: {port: 1, host: file, docs: false, keep_alive_s: 1}",
        "environ": {
            "LLMSERVE_SERVER__PORT": "2",
            "LLMSERVE_SERVER__HOST": "env",
            "LLMSERVE_SERVER__DOCS": "true",
        },
        "flags": {"server.port": Flag("--port", "3"), "server.host": Flag("--host", "flag")},
        "sets": ["server.port=4", "server.port=5"],
    }
    loaded = load(tmp_path, **layers)
    server = loaded.settings.server
    assert (server.port, server.host, server.docs, server.keep_alive_s) == (5, "flag", True, 1)
    assert loaded.sources["server.port"] == "--set server.port"
    assert loaded.sources["server.host"] == "flag --host"
    assert loaded.sources["server.docs"] == "environment LLMSERVE_SERVER__DOCS"
    assert loaded.sources["server.keep_alive_s"] == f"{tmp_path}/s.yaml:1"
    assert loaded.sources["server.drain_timeout_s"] == "default"


def test_the_variable_names_the_file_unless_the_flag_does(tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text("server:\n\n  port: 77\n")
    environ = {"LLMSERVE_CONFIG": str(other)}
    loaded = load_settings(environ=environ)
    assert loaded.settings.server.port == 77
    assert loaded.sources["server.port"] == f"{other}:3"
    assert load(tmp_path, "server: {port: 78}", environ).settings.server.port == 78


@pytest.mark.parametrize(
    ("variable", "text", "section", "field", "value"),
    [
        ("SERVER__CORS_ORIGINS", "[a, 'b c']", "server", "cors_origins", ("a", "b c")),
        ("SERVER__CORS_ORIGINS", "http://a:1", "server", "cors_origins", ("http://a:1",)),
        ("SERVER__CORS_ORIGINS", "[]", "server", "cors_origins", ()),
        ("MODEL__SERVED_NAMES", "[7, 1.10, null]", "model", "served_names", None),
        ("MODEL__SERVED_NAMES", "[7, 1.10]", "model", "served_names", ("7", "1.10")),
        ("MODEL__VERSION", "1.10", "model", "version", "1.10"),
        ("MODEL__SOURCE", "a: b #c", "model", "source", "a: b #c"),
        ("MODEL__REVISION", "2024-01-01", "model", "revision", "2024-01-01"),
        ("MODEL__REVISION", "null", "model", "revision", None),
        ("MODEL__REVISION", "", "model", "revision", None),
        ("SERVER__DOCS", "off", "server", "docs", False),
        ("SERVER__KEEP_ALIVE_S", "1e1", "server", "keep_alive_s", 10.0),
    ],
)
def test_texts_become_what_the_setting_wants(
    tmp_path: Path, variable: str, text: str, section: str, field: str, value: object
) -> None:
    name = f"LLMSERVE_{variable}"
    if value is None and field != "revision":
        assert "must be a list of texts" in mistakes(tmp_path, environ={name: text})[0]
    else:
        loaded = load(tmp_path, environ={name: text})
        assert getattr(getattr(loaded.settings, section), field) == value


def test_texts_in_a_file_stay_as_they_are_written(tmp_path: Path) -> None:
    loaded = load(tmp_path, "model: {version: 1.10, served_names: 7b}\nauth: {api_keys: [0123]}")
    assert loaded.settings.model.version == "1.10"
    assert loaded.settings.model.served_names == ("7b",)
    assert loaded.settings.auth.api_keys[0].get_secret_value() == "0123"


@pytest.mark.parametrize("yaml", ["", "# nothing\n", "server:\n  # port: 1\n", "---\n", "{}"])
def test_empty_files_and_sections(tmp_path: Path, yaml: str) -> None:
    assert load(tmp_path, yaml).settings == Settings()


@pytest.mark.parametrize(
    ("yaml", "line"),
    [
        (
            "server:\n  port: 70000\n",
            "s.yaml:2: server.port: 70000 is not allowed; "
            "it must be a whole number from 0 to 65535.",
        ),
        (
            "server: {port: yes}",
            "s.yaml:1: server.port: True is not allowed; "
            "it must be a whole number from 0 to 65535.",
        ),
        (
            "server: {keep_alive_s: .nan}",
            "s.yaml:1: server.keep_alive_s: nan is not allowed; "
            "it must be a number from 0 to 86400.",
        ),
        (
            "logging: {level: loud}",
            "s.yaml:1: logging.level: 'loud' is not allowed; "
            "it must be one of debug, info, warning, error.",
        ),
        (
            "model: {source: ''}",
            "s.yaml:1: model.source: '' is not allowed; it must be text, not empty.",
        ),
        ("server: {prot: 1}", "s.yaml:1: server.prot is not a setting. Did you mean server.port?"),
        ("port: 1", "s.yaml:1: port is not a setting. Did you mean server.port?"),
        ("serve: {port: 1}", "s.yaml:1: serve is not a setting. Did you mean server?"),
        ("server.port: 1", "s.yaml:1: write port below server:, indented, not as server.port."),
        ("server: 1", "s.yaml:1: server is a section; its settings go below it, indented."),
        ("xyz: 1", "s.yaml:1: xyz is not a setting. The sections are model, server, "),
        ("auth: {xyz: 1}", "s.yaml:1: auth.xyz is not a setting. auth has api_keys,"),
        ("- a", "s.yaml:1: the file must hold sections: model, server, "),
        ("server:\n  port: 1\n  port: 1\n", "s.yaml:3: port is given twice, first in line 2."),
        ("server: {port: 1, port: 2}", "s.yaml:1: port is given twice, first in line 1."),
        ("engine:\n  a:\n    b: 1\n    b: 1\n", "s.yaml:4: b is given twice, first in line 3."),
        ("server:\n\tport: 1\n", "s.yaml:2: found character '\\t' that cannot start any token."),
        ("server: [\n", "s.yaml:2: "),
        ("? [a]\n: 1\n", "s.yaml:1: a key must be a plain name."),
        ("a: 1\n---\nb: 2\n", "s.yaml:2: but found another document."),
        ("engine: {seed: !!python/object:os.system x}", "s.yaml:1: could not determine a constru"),
        ("engine: {seed: &a [*a]}", "s.yaml:1: an alias that contains itself."),
        ("model: {source: *nowhere}", "s.yaml:1: found undefined alias 'nowhere'."),
        ("# \x00", "s.yaml:1: a character that YAML does not allow."),
        (f"engine: {{seed: {'[' * 1500}", "s.yaml: nested too deeply."),
    ],
)
def test_mistakes_in_a_file(tmp_path: Path, yaml: str, line: str) -> None:
    (found,) = mistakes(tmp_path, yaml)
    assert found.startswith(line)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for config, problem in (
        (tmp_path / "none.yaml", "there is no such file."),
        (tmp_path, "Is a directory."),
    ):
        with pytest.raises(ConfigError, match=f"^{config}: {problem}$"):
            load_settings(environ={}, config=config)
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"model:\n  source: caf\xe9\n")
    with pytest.raises(ConfigError, match=r"latin\.yaml:2: not UTF-8 text\."):
        load_settings(environ={}, config=latin)


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    path = tmp_path / "bom.yaml"
    path.write_bytes(b"\xef\xbb\xbfserver: {port: 5}\n")
    assert load_settings(environ={}, config=path).settings.server.port == 5


def test_anchors_and_merges_work(tmp_path: Path) -> None:
    yaml = "server: &a {port: 1, docs: false}\nengine:\n  hf_overrides: {<<: *a, port: 2}"
    engine = load(tmp_path, yaml).settings.engine
    assert engine == {"hf_overrides": {"port": 2, "docs": False}}


@pytest.mark.parametrize(
    ("variable", "line"),
    [
        ("LLMSERVE_PORT", "not a setting; variables are named LLMSERVE_SECTION__KEY. "
         "Did you mean LLMSERVE_SERVER__PORT?"),
        ("LLMSERVE_SERVER__PROT", "not a setting; variables are named LLMSERVE_SECTION__KEY. "
         "Did you mean LLMSERVE_SERVER__PORT?"),
        ("LLMSERVE_API_KEY", "not a setting; variables are named LLMSERVE_SECTION__KEY. "
         "Did you mean LLMSERVE_AUTH__API_KEYS?"),
        ("LLMSERVE_ENGINE", "not a setting; "),
        ("LLMSERVE_ENGINE__", "engine. is not a setting."),
        ("LLMSERVE_", "not a setting; "),
        ("LLMSERVE_SERVER__PORT", "server.port: 'x' is not allowed; "),
    ],
)  # fmt: skip
def test_mistakes_in_the_environment(tmp_path: Path, variable: str, line: str) -> None:
    (found,) = mistakes(tmp_path, environ={variable: "x"})
    assert found.startswith(f"environment {variable}: {line}")


def test_variables_of_kubernetes_services_are_left_alone() -> None:
    environ = {
        "LLMSERVE_SERVICE_HOST": "10.0.0.1",
        "LLMSERVE_SERVICE_PORT": "8000",
        "LLMSERVE_SERVICE_PORT_HTTP": "8000",
        "LLMSERVE_PORT": "tcp://10.0.0.1:8000",
        "LLMSERVE_PORT_8000_TCP": "tcp://10.0.0.1:8000",
        "LLMSERVE_PORT_8000_TCP_ADDR": "10.0.0.1",
        "LLMSERVE_METRICS_SERVICE_HOST": "10.0.0.2",
        "LLMSERVE_METRICS_PORT": "udp://10.0.0.2:9",
    }
    assert load_settings(environ=environ).settings == Settings()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("server.port", "--set server.port: it is written --set section.key=value."),
        ("server={}", "--set server: server is a section; name one setting in it."),
        ("engine=3", "--set engine: engine is a section; name one setting in it."),
        ("port=3", "--set port: port is not a setting. Did you mean server.port?"),
        ("=3", "--set :  is not a setting."),
        ("server.port=[1", "--set server.port: server.port: '[1' cannot be read: expected ',' "),
        ("server.port=", "--set server.port: server.port: None is not allowed; "),
        ("server.port.x=1", "--set server.port.x: server.port.x is not a setting."),
        ("server.cors_origins=a,b", "--set server.cors_origins: server.cors_origins: 'a,b' "
         "cannot be read: several texts are written as a list: '[a, b]'."),
    ],
)  # fmt: skip
def test_mistakes_in_set(tmp_path: Path, text: str, line: str) -> None:
    (found,) = mistakes(tmp_path, sets=[text])
    assert found.startswith(line)


def test_all_mistakes_are_reported_at_once(tmp_path: Path) -> None:
    found = mistakes(
        tmp_path,
        "server:\n  prt: 1\n  host: ''\nlogging: {level: x}\n",
        {"LLMSERVE_FOO": "1"},
        flags={"server.port": Flag("--port", "x")},
        sets=["nonsense"],
    )
    assert [line.split(": ")[0] for line in found] == [
        "s.yaml:2",
        "environment LLMSERVE_FOO",
        "--set nonsense",
        "s.yaml:3",
        "flag --port",
        "s.yaml:4",
    ]


def test_a_wrong_value_that_a_higher_layer_replaces_does_not_matter(tmp_path: Path) -> None:
    loaded = load(tmp_path, "server: {port: x}", sets=["server.port=9"])
    assert loaded.settings.server.port == 9


def test_secrets_are_never_shown(tmp_path: Path) -> None:
    for keys in ("[{a: hunter2}]", "hunter2,x", "[hunter2", "[hunter2, [a]]"):
        lines = mistakes(tmp_path, environ={"LLMSERVE_AUTH__API_KEYS": keys})
        assert "hunter2" not in "".join(lines)
        assert "**********" in "".join(lines)
    loaded = load(
        tmp_path,
        "engine: {hf_token: hunter2, model_loader_extra_config: {s3_secret_access_key: hunter2}}",
        {"LLMSERVE_AUTH__API_KEYS": "hunter2"},
    )
    assert "hunter2" not in str(masked(loaded.settings))
    assert "hunter2" not in repr(loaded.settings.auth)
    assert loaded.settings.engine["hf_token"] == "hunter2"


@pytest.mark.parametrize("text", ["", " ", "['']", "[a, '']"])
def test_an_empty_key_does_not_open_the_server(tmp_path: Path, text: str) -> None:
    (line,) = mistakes(tmp_path, environ={"LLMSERVE_AUTH__API_KEYS": text})
    assert line.endswith("auth.api_keys: an API key must not be empty.")


def test_engine_arguments_are_yaml_and_can_be_changed_in_part(tmp_path: Path) -> None:
    loaded = load(
        tmp_path,
        "engine: {speculative_config: {method: ngram, num_speculative_tokens: 3}, seed: 1}",
        {"LLMSERVE_ENGINE__MAX_MODEL_LEN": "2048", "LLMSERVE_ENGINE__ENFORCE_EAGER": "true"},
        sets=[
            "engine.speculative_config.num_speculative_tokens=5",
            "engine.gpu_memory_utilization=9e-1",
            "engine.hf_overrides={a: 2024-01-01}",
        ],
    )
    assert loaded.settings.engine == {
        "speculative_config": {"method": "ngram", "num_speculative_tokens": 5},
        "seed": 1,
        "max_model_len": 2048,
        "enforce_eager": True,
        "gpu_memory_utilization": 0.9,
        "hf_overrides": {"a": "2024-01-01"},
    }
    assert loaded.sources["engine.speculative_config"] == (
        f"{tmp_path}/s.yaml:1 + --set engine.speculative_config.num_speculative_tokens"
    )


def test_every_setting_is_described() -> None:
    for key in setting_keys().values():
        assert key.description, key.name
        assert key.allowed, key.name
