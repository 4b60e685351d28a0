"""Settings from flags, the environment, a YAML file and the defaults, in that order.

The layers (``settings_layers``) are laid over one another and the result is validated
once. All mistakes are reported together, each with its source, the key, the value and
what is allowed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import SecretStr, ValidationError

from llmserve.errors import ConfigError
from llmserve.settings import Settings
from llmserve.settings_keys import ENGINE, Key, Kind, section_names
from llmserve.settings_layers import MASK, Entry, Reading, display

_SECRET_ARGUMENT = re.compile(
    r"(^|_)(token|secret|password|credentials?|(access|api|secret)_key(_id)?)$"
)


@dataclass(frozen=True, slots=True)
class Flag:
    """A setting given by a flag of its own: how the flag is spelled, and its value (a
    text is read like one from ``--set``, anything else is taken as it is)."""

    spelling: str
    value: Any


@dataclass(frozen=True, slots=True)
class Loaded:
    """The settings and, for every dotted key, where its value came from. ``notes`` are
    things worth knowing that are not mistakes."""

    settings: Settings
    sources: Mapping[str, str]
    notes: tuple[str, ...] = ()


def load_settings(
    *,
    environ: Mapping[str, str],
    flags: Mapping[str, Flag] | None = None,
    sets: Sequence[str] = (),
    config: Path | None = None,
) -> Loaded:
    """Merge flags and ``--set`` over the environment over a YAML file over the defaults.

    ``flags`` maps dotted keys; ``sets`` are texts ``section.key=value`` (they win over a
    flag for the same key, and the last one wins among themselves); ``config`` is the
    file, by default the one that ``LLMSERVE_CONFIG`` names. Raises ``ConfigError`` with
    one line for each mistake.
    """
    reading = Reading()
    if config is None and environ.get("LLMSERVE_CONFIG"):
        config = Path(environ["LLMSERVE_CONFIG"])
    if config is not None:
        reading.read_file(config)
    reading.read_environment(environ)
    for name, flag in (flags or {}).items():
        _read_flag(reading, name, flag)
    for text in sets:
        reading.read_set(text)

    notes: tuple[str, ...] = ()
    if not reading.check_engine_names():
        notes = ("The arguments under engine: are not checked: vLLM is not installed.",)
    tree, sources = _merge(reading.entries)
    settings = _validate(reading, tree, sources)
    if reading.problems or settings is None:
        raise ConfigError("\n".join(dict.fromkeys(reading.problems)))
    return Loaded(settings, dict.fromkeys(reading.keys, "default") | sources, notes)


def masked(settings: Settings) -> dict[str, Any]:
    """The whole tree as plain data with its secrets masked, also those that are passed
    on to vLLM (``hf_token``, the keys of a bucket)."""
    sections = {name: getattr(settings, name) for name in section_names()}
    return {
        name: _mask(section if name == ENGINE else section.model_dump())
        for name, section in sections.items()
    }


def _mask(value: Any, name: str = "") -> Any:
    secret_text = isinstance(value, str) and _SECRET_ARGUMENT.search(name.lower())
    if secret_text or isinstance(value, SecretStr):
        return MASK
    if isinstance(value, Mapping):
        return {key: _mask(item, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_mask(item, name) for item in value]
    return value


def _read_flag(reading: Reading, name: str, flag: Flag) -> None:
    source = f"{'flag' if flag.spelling.startswith('-') else 'argument'} {flag.spelling}"
    if isinstance(flag.value, str):
        reading.add_text(name, flag.value, source)
    else:
        reading.add(name, flag.value, source)


def _merge(entries: Iterable[Entry]) -> tuple[dict[str, Any], dict[str, str]]:
    """Lay the entries over one another. A path into an engine argument
    (``engine.speculative_config.method``) changes that part of it only."""
    tree: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for entry in entries:
        place = tree.setdefault(entry.path[0], {})
        for part in entry.path[1:-1]:
            inner = place.get(part)
            place[part] = dict(inner) if isinstance(inner, Mapping) else {}
            place = place[part]
        place[entry.path[-1]] = entry.value
        name = ".".join(entry.path[:2])
        partial = len(entry.path) > 2 and name in sources
        sources[name] = f"{sources[name]} + {entry.source}" if partial else entry.source
    return tree, sources


def _validate(
    reading: Reading, tree: Mapping[str, Any], sources: Mapping[str, str]
) -> Settings | None:
    for name, key in reading.keys.items():
        section, _, leaf = name.partition(".")
        value = tree.get(section, {}).get(leaf)
        # Python counts True as 1, and so does pydantic; "port: yes" is a mistake.
        if isinstance(value, bool) and key.kind in (Kind.WHOLE, Kind.NUMBER):
            reading.blame(sources[name], _not_allowed(key, value))
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            name = ".".join(map(str, detail["loc"][:2]))
            wrong = reading.keys.get(name)
            own = detail.get("ctx", {}).get("error")
            if own or wrong is None:
                problem = f"{name}: {own or detail['msg']}."
            else:
                problem = _not_allowed(wrong, detail["input"])
            reading.blame(sources.get(name, "default"), problem)
        return None


def _not_allowed(key: Key, value: Any) -> str:
    shown = display(value, secret=key.secret)
    return f"{key.name}: {shown} is not allowed; it must be {key.allowed}."
