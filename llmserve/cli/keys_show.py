"""Keys and usage for people (tables on a terminal), for scripts (tabs, JSON)."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from llmserve.state import ApiKey, UsageRow

_COUNTS = ("requests", "prompt_tokens", "cached_tokens", "completion_tokens")
_LIMITS = {
    "requests_per_minute": "requests/min",
    "tokens_per_minute": "tokens/min",
    "concurrency": "at a time",
    "tokens_per_day": "tokens/day",
}


def key_json(key: ApiKey, now: float) -> dict[str, Any]:
    """All that is known of a key. Times in ISO 8601, UTC."""
    return {
        "id": key.id,
        "name": key.name,
        "status": _status(key, now),
        "prefix": key.prefix,
        "scopes": sorted(key.scopes),
        "models": None if key.models is None else sorted(key.models),
        "limits": asdict(key.limits),
        "weight": key.weight,
        "created_at": shown_time(key.created_at),
        "expires_at": shown_time(key.expires_at),
        "revoked_at": shown_time(key.revoked_at),
    }


def print_keys(keys: Sequence[ApiKey], now: float) -> None:
    """One line for each key."""
    header = ("id", "name", "status", "begins with", "scopes", "models", "limits", "expires")
    _print(
        header,
        [
            (
                *(key.id, key.name, _status(key, now), f"{key.prefix}…"),
                " ".join(sorted(key.scopes)),
                "all" if key.models is None else " ".join(sorted(key.models)),
                _limits(key),
                shown_time(key.expires_at) or "never",
            )
            for key in keys
        ],
    )


def usage_json(
    rows: Sequence[UsageRow], names: Mapping[str, str], first: date, last: date
) -> dict[str, Any]:
    """The rows, each with the name of its key, and their total."""
    return {
        "from": first.isoformat(),
        "to": last.isoformat(),
        "rows": [asdict(row) | {"key_name": names.get(row.key_id, row.key_id)} for row in rows],
        "total": _total(rows),
    }


def print_usage(rows: Sequence[UsageRow], names: Mapping[str, str]) -> None:
    """One line for each day, key, model and outcome; on a terminal the total as well."""
    header = ("day", "key", "model", "outcome", "requests", "prompt", "cached", "completion")
    lines = [
        (
            *(row.day, names.get(row.key_id, row.key_id), row.model, row.outcome.value),
            *(str(getattr(row, count)) for count in _COUNTS),
        )
        for row in rows
    ]
    if sys.stdout.isatty():
        lines.append(("total", "", "", "", *map(str, _total(rows).values())))
    _print(header, lines)


def shown_time(seconds: float | None) -> str | None:
    """Unix seconds as ``2026-12-31T23:59:59Z``."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _status(key: ApiKey, now: float) -> str:
    if key.revoked_at is not None:
        return "revoked"
    return "expired" if key.expires_at is not None and key.expires_at <= now else "active"


def _limits(key: ApiKey) -> str:
    limits = asdict(key.limits)
    given = [f"{limits[field]} {text}" for field, text in _LIMITS.items() if limits[field]]
    if key.weight != 1:
        given.append(f"weight {key.weight:g}")
    return ", ".join(given) or "none"


def _total(rows: Sequence[UsageRow]) -> dict[str, int]:
    return {count: sum(getattr(row, count) for row in rows) for count in _COUNTS}


def _print(header: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    if not sys.stdout.isatty():
        for line in (header, *lines):
            click.echo("\t".join(line))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*header, box=None, pad_edge=False)
    for line in lines:
        table.add_row(*map(Text, line))
    Console().print(table)
