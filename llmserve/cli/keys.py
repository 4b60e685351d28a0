"""``llmserve keys``: who may use the server, how much, and how much they did."""

from __future__ import annotations

import dataclasses
import json
import time
from datetime import date, timedelta
from typing import TYPE_CHECKING

import click

from llmserve.cli import keys_values as values
from llmserve.cli.failure import CommandFailed
from llmserve.cli.keys_show import key_json, print_keys, print_usage, shown_time, usage_json
from llmserve.cli.state import takes_store
from llmserve.types import Limits, Scope

if TYPE_CHECKING:
    from llmserve.state import ApiKey, Store

_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(short_help="Create, list, revoke and rotate API keys; show their usage.")
def keys() -> None:
    """Create, list, revoke and rotate API keys, and show what they used.

    Works while the server runs, which obeys within two seconds. Keys are kept as hashes:
    a key is shown once, when it is made.
    """


@keys.command(short_help="Make a key and print it, once.")
@click.argument("name", type=values.key_name)
@click.option(
    "--scope",
    "scopes",
    type=click.Choice([scope.value for scope in Scope]),
    multiple=True,
    default=("infer",),
    show_default=True,
    help="infer: generate text; metrics: read /metrics; admin: see everybody's requests and "
    "usage, and end requests. Repeatable.",
)
@click.option(
    "--model",
    "models",
    metavar="NAME",
    multiple=True,
    help="A model it may ask for; repeatable. Default: all.",
)
@click.option(
    "--requests-per-minute", metavar="N", type=values.count, help="Most requests a minute."
)
@click.option(
    "--tokens-per-minute", metavar="N", type=values.count, help="Most tokens a minute, both ways."
)
@click.option("--concurrency", metavar="N", type=values.count, help="Most requests at a time.")
@click.option(
    "--tokens-per-day", metavar="N", type=values.count, help="Most tokens a UTC day, both ways."
)
@click.option(
    "--weight",
    metavar="W",
    type=values.weight,
    default="1",
    help="Its share of a busy server against other keys' 1; 0.01 to 100.",
)
@click.option(
    "--expires",
    metavar="WHEN",
    type=values.expiry,
    help="30d, 12h, or 2026-12-31 (the end of that day).",
)
@_JSON
@takes_store
def create(
    store: Store,
    *,
    name: str,
    scopes: tuple[str, ...],
    models: tuple[str, ...],
    weight: float,
    expires: float | None,
    as_json: bool,
    **limits: int | None,
) -> None:
    """Make a key called NAME and print it. Nothing can show it again later."""
    from llmserve.state.protocol import ApiKey
    from llmserve.state.secrets import digest, new_key, new_key_id, shown_prefix

    secret = new_key()
    key = ApiKey(
        new_key_id(),
        name,
        shown_prefix(secret),
        created_at=time.time(),
        expires_at=expires,
        scopes=frozenset(map(Scope, scopes)),
        models=frozenset(models) or None,
        limits=Limits(**limits),
        weight=weight,
    )
    store.create_key(key, digest(secret))
    until = f" It expires at {shown_time(expires)}." if expires else ""
    _hand_over(key, secret, f"Made {key.id} ({name}).{until}", as_json=as_json)


@keys.command("list", short_help="Show all keys; never the keys themselves.")
@_JSON
@takes_store
def list_(store: Store, *, as_json: bool) -> None:
    """Show all keys, with their limits. Of the key itself, only how it begins."""
    now, known = time.time(), store.keys()
    if as_json:
        click.echo(json.dumps([key_json(key, now) for key in known], ensure_ascii=False))
    else:
        print_keys(known, now)


@keys.command(short_help="End a key for good.")
@click.argument("which", metavar="ID|NAME")
@takes_store
def revoke(store: Store, *, which: str) -> None:
    """End a key for good. Running servers refuse it within two seconds."""
    key = _find(store, which)
    if not store.revoke_key(key.id, time.time()):
        raise CommandFailed(f"{key.id} ({key.name}) has been revoked already.")
    click.echo(f"llmserve: Revoked {key.id} ({key.name}).", err=True)


@keys.command(short_help="Replace a key by a new one with the same rights.")
@click.argument("which", metavar="ID|NAME")
@click.option(
    "--grace",
    metavar="TIME",
    type=values.duration,
    help="How long the old key still works: 24h, 30m, 7d. Default: not at all.",
)
@_JSON
@takes_store
def rotate(store: Store, *, which: str, grace: float | None, as_json: bool) -> None:
    """Replace a key by a new one with the same name, rights, limits and usage, and print
    it. The old one ends at once, or after --grace."""
    from llmserve.state.secrets import digest, new_key, shown_prefix

    key = _find(store, which)
    secret = new_key()
    until = time.time() + grace if grace else None
    if not store.rotate_key(key.id, digest(secret), shown_prefix(secret), until):
        raise CommandFailed(f"{key.id} ({key.name}) has been revoked; create another key.")
    old = f"works until {shown_time(until)}" if until else "does not work any more"
    note = f"Rotated {key.id} ({key.name}). The old key {old}."
    key = dataclasses.replace(key, prefix=shown_prefix(secret))
    _hand_over(key, secret, note, as_json=as_json)


@keys.command(short_help="Show what keys used, by day and model.")
@click.option("--from", "first", metavar="DAY", type=values.day, help="First UTC day: 2026-12-31.")
@click.option("--to", "last", metavar="DAY", type=values.day, help="Last UTC day. Default: today.")
@click.option("--key", "which", metavar="ID|NAME", help="One key only.")
@_JSON
@takes_store
def usage(
    store: Store, *, first: date | None, last: date | None, which: str | None, as_json: bool
) -> None:
    """Show requests and tokens by day, key, model and outcome: of the last 30 days, unless
    --from says otherwise."""
    last = last or values.today()
    first = first or last - timedelta(days=29)
    if first > last:
        raise click.UsageError(f"--from {first} is after --to {last}.")
    known = store.keys()
    names = {key.id: key.name for key in known}
    key_id = None if which is None else _find_used(store, which)
    rows = store.usage(first.isoformat(), last.isoformat(), key_id)
    if as_json:
        click.echo(json.dumps(usage_json(rows, names, first, last), ensure_ascii=False))
    else:
        print_usage(rows, names)


def _find(store: Store, which: str) -> ApiKey:
    """The key with this id, or the one with this name; of several, that in force."""
    known = store.keys()
    found = [key for key in known if which in (key.id, key.name)]
    alive = [key for key in found if key.revoked_at is None]
    if not found:
        raise CommandFailed(f"There is no key {which!r}; `llmserve keys list` shows all.")
    if len(found) > 1 and not alive:
        ids = ", ".join(key.id for key in found)
        raise CommandFailed(f"Several revoked keys are called {which!r}: {ids}.")
    return (alive or found)[0]


def _find_used(store: Store, which: str) -> str:
    """As ``_find``; usage is also known of callers whose key is not in the store."""
    if which == "anonymous" or which.startswith("static-"):
        return which
    return _find(store, which).id


def _hand_over(key: ApiKey, secret: str, note: str, *, as_json: bool) -> None:
    """The secret, and nothing else, goes to standard output."""
    click.echo(f"llmserve: {note} Keep the key: it cannot be shown again.", err=True)
    if as_json:
        document = {"key": secret, **key_json(key, time.time())}
        click.echo(json.dumps(document, ensure_ascii=False))
    else:
        click.echo(secret)
