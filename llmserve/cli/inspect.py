"""``llmserve inspect``: look into models without loading them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmserve.cli.failure import CommandFailed
from llmserve.errors import LlmserveError

if TYPE_CHECKING:
    from llmserve.modelfile import Ask, ModelFile

DAMAGED, NOT_SERVABLE = 3, 4
DIFFERENT, TROUBLE = 1, 2


@click.command(short_help="Look into a model without loading it, or compare two.")
@click.argument("models", nargs=-1, required=True, metavar="MODEL [MODEL]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--tensors", is_flag=True, help="Show the tensor table as well.")
@click.option("--estimate", is_flag=True, help="Show what serving it takes, and whether it fits.")
@click.option("--memory", metavar="SIZE", help="Memory of each GPU, as 80GiB. Default: this one's.")
@click.option("--tp", type=click.IntRange(1, 1024), default=1, help="GPUs that share the model.")
@click.option("--context", type=click.IntRange(1), help="Tokens of each sequence.")
def inspect(
    models: tuple[str, ...],
    as_json: bool,
    tensors: bool,
    estimate: bool,
    memory: str | None,
    tp: int,
    context: int | None,
) -> int:
    """Describe MODEL from its headers alone: a GGUF, SafeTensors or APR file, a folder, the
    name of a model that `llmserve serve` would list, or hf:ORG/NAME[@REVISION][:FILE] on the
    Hugging Face hub, of which only the headers are fetched.

    Exits with 1 when it cannot be described, with 3 when its files are damaged, and with 4
    when --estimate finds that it cannot be served so.

    Of two models, shows what differs, and exits like diff: 0 when nothing does, 1 when
    something does, 2 when one cannot be described.
    """
    if len(models) > 2:
        raise click.UsageError("at most two models can be compared")
    if len(models) == 2:
        return _compare(models[0], models[1], as_json=as_json)
    model = _describe(models[0])
    found = None
    if estimate or memory or context or tp > 1:
        from llmserve.modelfile import estimate as estimate_of

        found = estimate_of(model, _ask(memory, tp, context))
    if as_json:
        from llmserve.modelfile import views

        shown = views.summary(model) | {"metadata": views.metadata(model)}
        if tensors:
            shown["tensors"] = [views.plain(each) for each in model.tensors]
        if found is not None:
            shown["estimate"] = views.estimate_view(found)
        _print_json(shown)
    else:
        from llmserve.cli.inspect_view import show

        show(model, found, tensors=tensors)
    if model.problems:
        return DAMAGED
    return NOT_SERVABLE if found is not None and not found.verdict.fits else 0


def _print_json(shown: dict[str, Any]) -> None:
    click.echo(json.dumps(shown, ensure_ascii=False).encode("utf-8", "replace").decode())


def _compare(a: str, b: str, *, as_json: bool) -> int:
    from llmserve.modelfile import compare, views

    try:
        found = compare(_describe(a), _describe(b))
    except (LlmserveError, CommandFailed) as error:
        click.echo(f"llmserve: {error}", err=True)
        return TROUBLE
    if as_json:
        _print_json({"equal": found.equal, **views.plain(found)})
    else:
        from llmserve.cli.inspect_view import show_comparison

        show_comparison(a, b, found)
    return 0 if found.equal else DIFFERENT


def _describe(target: str) -> ModelFile:
    from llmserve.modelfile import describe, describe_store

    if target.startswith("hf:"):
        from llmserve.provision.remote import HubStore, parse_target

        name, revision, file = parse_target(target)
        environ = click.get_current_context().obj
        with HubStore(name, revision, environ=environ) as store:
            return describe_store(store, file)
    if Path(target).exists():
        return describe(target)
    place = _named(target)
    return describe(place[0], root=place[1])


def _named(name: str) -> tuple[Path, Path]:
    """Where a model lies that the server would list under this name."""
    from llmserve.catalog.places import MAIN, find_places
    from llmserve.catalog.search import search_of
    from llmserve.settings_load import load_settings

    settings = load_settings(environ=click.get_current_context().obj).settings
    if name == "demo":
        settings = settings.model_copy(
            update={"model": settings.model.model_copy(update={"source": "demo"})}
        )
    places = {place.name: place for place in find_places(**search_of(settings))}
    if MAIN in places:
        places |= dict.fromkeys(settings.model.names, places[MAIN])
    if name not in places:
        import difflib

        near = difflib.get_close_matches(name, filter(None, places), n=3)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise CommandFailed(
            f"There is no file, folder or known model {name}.{hint} One on the Hugging Face hub"
            f" is hf:{name if '/' in name else 'ORG/NAME'}."
        )
    return Path(places[name].path), Path(places[name].root)


def _ask(memory: str | None, devices: int, context: int | None) -> Ask:
    from llmserve.catalog.answers import this_machine
    from llmserve.modelfile import Ask, parse_bytes

    if memory is None:
        machine = this_machine()
        devices = devices if machine["gpu"] else 1
        return Ask(
            machine["memory_bytes"], gpu=machine["gpu"], tensor_parallel=devices, context=context
        )
    try:
        size = parse_bytes(memory)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--memory") from error
    return Ask(size, tensor_parallel=devices, context=context)
