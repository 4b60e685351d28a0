"""The options of ``llmserve bench``, and the plan that they make."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

from llmserve.cli.server_options import DEFAULT_URL
from llmserve.errors import ConfigError

if TYPE_CHECKING:
    from llmserve.loadtest.plan import Address, Load, Plan, Workload

Option = Callable[[Callable[..., Any]], Callable[..., Any]]

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)?")
_UNITS = {None: 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_ROUNDS_OF_A_COMPARISON = 5
_WHOLE = click.IntRange(min=1)

TARGETS = (
    click.option("--url", help=f"Server; default: {DEFAULT_URL}. [LLMSERVE_CLIENT_URL]"),
    click.option("--api-key", metavar="KEY", help="API key. [LLMSERVE_CLIENT_API_KEY]"),
    click.option("--model", metavar="NAME", help="Model to ask; default: the server's first."),
    click.option(
        "--against", metavar="URL", help="Compare with this server: A B A B, medians, ratios."
    ),
    click.option("--against-api-key", metavar="KEY", help="API key of the second server."),
    click.option("--against-model", metavar="NAME", help="Model of the second server."),
    click.option(
        "--endpoint",
        type=click.Choice(["chat", "completions"]),
        default="chat",
        show_default=True,
        help="Which route to ask.",
    ),
    click.option(
        "--body", multiple=True, metavar="NAME=JSON", help="Extra request field; repeatable."
    ),
)
LOAD = (
    click.option("--concurrency", metavar="STEPS", help="Closed loop; default: 8 at once."),
    click.option("--rate", metavar="STEPS", help="Open loop: requests a second."),
    click.option(
        "--arrivals",
        type=click.Choice(["poisson", "even"]),
        default="poisson",
        show_default=True,
        help="Gaps between the requests of an open loop.",
    ),
    click.option(
        "--duration", metavar="TIME", help="Length of a step, as 90s or 5m; default: 30s."
    ),
    click.option("--requests", type=_WHOLE, metavar="N", help="Requests of a step, at most."),
    click.option("--rounds", type=_WHOLE, metavar="N", help="Repeat; default: 1, or 5 to compare."),
    click.option(
        "--warmup",
        type=click.IntRange(min=0),
        default=4,
        show_default=True,
        metavar="N",
        help="Requests before the first step that do not count.",
    ),
    click.option(
        "--timeout", default="300s", show_default=True, metavar="TIME", help="For one request."
    ),
    click.option(
        "--max-in-flight",
        type=_WHOLE,
        default=4096,
        show_default=True,
        metavar="N",
        help="Most requests of an open loop at once; more are late.",
    ),
    click.option("--seed", type=int, metavar="N", help="Same prompts, same times; default: new."),
)
WORKLOAD = (
    click.option("--prompt-tokens", metavar="LENGTHS", help="Default: 256."),
    click.option("--output-tokens", metavar="LENGTHS", help="Most tokens to answer; default: 128."),
    click.option("--sharegpt-like", is_flag=True, help="Lengths distributed as those of ShareGPT."),
    click.option(
        "--sharegpt", metavar="FILE", help="Prompts and answer lengths from a ShareGPT file."
    ),
    click.option(
        "--prefix-tokens",
        type=click.IntRange(min=0),
        default=0,
        metavar="N",
        help="Length of a prefix that prompts share.",
    ),
    click.option(
        "--prefix-share",
        default="100%",
        show_default=True,
        metavar="PERCENT",
        help="Share of prompts with such a prefix.",
    ),
    click.option(
        "--prefix-groups",
        type=_WHOLE,
        default=1,
        show_default=True,
        metavar="N",
        help="How many different prefixes there are.",
    ),
    click.option(
        "--ignore-eos", is_flag=True, help="Answers of full length (vLLM, llmserve, SGLang)."
    ),
)
OBJECTIVES = (
    click.option(
        "--slo",
        multiple=True,
        metavar="METRIC:TIME",
        help="Objective, as ttft:500ms, tpot:50ms, itl:80ms, e2el:10s; repeatable.",
    ),
    click.option(
        "--require", metavar="PERCENT", help="Share of requests that must meet all objectives."
    ),
)
OUTPUT = (
    click.option(
        "--json", "json_file", metavar="FILE", help="Write the figures as JSON; - prints."
    ),
    click.option("--html", "html_file", metavar="FILE", help="Write a report with plots."),
    click.option("--details", is_flag=True, help="Every single request in the JSON as well."),
)


def decorated(*groups: tuple[Option, ...]) -> Option:
    """All these options for one command, in this order."""

    def decorate(body: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed([each for group in groups for each in group]):
            body = option(body)
        return body

    return decorate


def make_plan(environ: Mapping[str, str], given: Mapping[str, Any]) -> Plan:
    """Check what was given and put it together. Raises ``ConfigError``."""
    import random

    from llmserve.loadtest.figures import parse_objective
    from llmserve.loadtest.plan import Plan

    objectives = tuple(parse_objective(each, "--slo") for each in given["slo"])
    require = None if given["require"] is None else _share("--require", given["require"])
    if require is not None and not objectives:
        raise ConfigError("--require needs an objective: give --slo as well.")
    addresses = _addresses(environ, given)
    seed = given["seed"]
    return Plan(
        addresses=addresses,
        endpoint=given["endpoint"],
        workload=_workload(given),
        load=_load(given),
        seed=random.randrange(2**31) if seed is None else seed,  # noqa: S311
        rounds=given["rounds"] or (_ROUNDS_OF_A_COMPARISON if len(addresses) > 1 else 1),
        warmup=given["warmup"],
        timeout=_seconds("--timeout", given["timeout"]),
        objectives=objectives,
        require=require,
        body=_body(given),
    )


def _addresses(environ: Mapping[str, str], given: Mapping[str, Any]) -> tuple[Address, ...]:
    from llmserve.loadtest.plan import Address

    url = given["url"] or environ.get("LLMSERVE_CLIENT_URL") or DEFAULT_URL
    key = given["api_key"] or environ.get("LLMSERVE_CLIENT_API_KEY")
    first = Address(url, given["model"], key)
    if given["against"] is None:
        for name in ("against_api_key", "against_model"):
            if given[name] is not None:
                raise ConfigError(f"--{name.replace('_', '-')} needs --against.")
        return (first,)
    return first, Address(given["against"], given["against_model"], given["against_api_key"])


def _load(given: Mapping[str, Any]) -> Load:
    from llmserve.loadtest.arrivals import parse_steps
    from llmserve.loadtest.plan import Load

    rate, concurrency = given["rate"], given["concurrency"]
    if rate is not None and concurrency is not None:
        raise ConfigError("Give --rate (open loop) or --concurrency (closed loop), not both.")
    duration = given["duration"]
    if duration is None and given["requests"] is None:
        duration = "30s"
    return Load(
        kind="closed" if rate is None else "open",
        levels=parse_steps(concurrency or "8", "--concurrency", whole=True)
        if rate is None
        else parse_steps(rate, "--rate", whole=False),
        seconds=None if duration is None else _seconds("--duration", duration),
        requests=given["requests"],
        pattern=given["arrivals"],
        max_in_flight=given["max_in_flight"],
    )


def _workload(given: Mapping[str, Any]) -> Workload:
    from pathlib import Path

    from llmserve.loadtest.lengths import SHAREGPT_ANSWERS, SHAREGPT_PROMPTS, Lengths, parse_lengths
    from llmserve.loadtest.plan import Workload

    like, file = given["sharegpt_like"], given["sharegpt"]
    texts = given["prompt_tokens"], given["output_tokens"]
    if file is not None and (like or texts[0] is not None or given["prefix_tokens"]):
        raise ConfigError(
            "--sharegpt brings its own prompts: it goes without --sharegpt-like, --prompt-tokens "
            "and --prefix-tokens."
        )
    if file is not None and not Path(file).is_file():
        raise ConfigError(f"--sharegpt: there is no file {file}.")
    prompts = SHAREGPT_PROMPTS if like else Lengths("fixed", 256)
    answers: Lengths | None = SHAREGPT_ANSWERS if like else Lengths("fixed", 128)
    if file is not None:
        answers = None
    return Workload(
        prompts=prompts if texts[0] is None else parse_lengths(texts[0], "--prompt-tokens"),
        answers=answers if texts[1] is None else parse_lengths(texts[1], "--output-tokens"),
        prefix_tokens=given["prefix_tokens"],
        prefix_share=_share("--prefix-share", given["prefix_share"]),
        prefix_groups=given["prefix_groups"],
        file=None if file is None else Path(file),
    )


def _body(given: Mapping[str, Any]) -> dict[str, Any]:
    """Extra fields. A value that is no JSON is taken as text, so that a name needs no quotes."""
    import json

    fields: dict[str, Any] = {"ignore_eos": True} if given["ignore_eos"] else {}
    for each in given["body"]:
        name, equals, text = each.partition("=")
        if not equals or not name:
            raise ConfigError(f"--body: {each!r} is not allowed; it must look like NAME=JSON.")
        if name in ("stream", "stream_options"):
            raise ConfigError(f"--body: {name} is not allowed; the figures need it as it is.")
        try:
            fields[name] = json.loads(text)
        except ValueError:
            fields[name] = text
    return fields


def _seconds(option: str, text: str) -> float:
    found = _DURATION.fullmatch(text)
    seconds = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if not seconds:
        raise ConfigError(f"{option}: {text!r} is not allowed; it must look like 500ms, 90s or 5m.")
    return seconds


def _share(option: str, text: str) -> float:
    """A percentage, as 0 to 1. What looks like a share of 1 has to be said with its sign."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(%?)", text)
    if found is None or not 0 <= float(found[1]) <= 100:
        raise ConfigError(f"{option}: {text!r} is not allowed; it must be a percentage, 0 to 100.")
    if 0 < float(found[1]) < 1 and not found[2]:
        meant = f"{100 * float(found[1]):g}%"
        raise ConfigError(f"{option}: {text!r} is not allowed; say {meant}, or {text}%.")
    return float(found[1]) / 100
