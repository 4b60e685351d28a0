"""``llmserve doctor``."""

from __future__ import annotations

import click


@click.command(short_help="Show what can be served here, and what is missing.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--offline", is_flag=True, help="Do not try whether package indexes answer.")
def doctor(as_json: bool, offline: bool) -> int:
    """Show hardware and versions, what can be served here, and what is missing.

    Exits with 1 when something is missing.
    """
    from llmserve.provision.doctor import collect, render

    report = collect(offline=offline)
    render(report, as_json=as_json)
    return 0 if report.ok else 1
