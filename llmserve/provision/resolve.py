"""What the user calls a model → a folder that vLLM can load."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmserve.errors import SetupError
from llmserve.provision.cache import cache_dir
from llmserve.provision.progress import Notify, silent

DEMO = "demo"
REPOSITORY = re.compile(
    r"(?=.{1,96}$)(?!.*(--|\.\.))\w[\w.-]*(?<![.-])(/\w[\w.-]*(?<![.-]))?", re.ASCII
)
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A model that is here and complete.

    ``path`` is a folder, or a GGUF file that is served as it is. ``name`` is what clients
    ask for unless the settings say otherwise. ``notes`` are for the log.
    ``engine_defaults`` are engine arguments, under vLLM's names, that suit this model;
    whatever the user set comes first.
    """

    source: str
    path: str
    name: str
    is_demo: bool = False
    notes: tuple[str, ...] = ()
    engine_defaults: Mapping[str, Any] = field(default_factory=dict)


def resolve_model(
    source: str,
    revision: str | None = None,
    *,
    cache: Path | None = None,
    notify: Notify = silent,
    offline: bool = False,
    native_gguf: bool = False,
) -> ResolvedModel:
    """Find, download or convert the model ``source``: ``demo``, a folder, a ``.gguf``
    file, or a Hugging Face id with an optional ``revision``.

    Blocks for as long as that takes. ``offline`` forbids the network, as
    ``HF_HUB_OFFLINE=1`` does. ``native_gguf``: a ``.gguf`` file is served as it is where
    vLLM's plugin can, instead of being dequantized; ``path`` is then the file. Raises
    ``SetupError`` that says what to do.
    """
    if source != DEMO:
        path = Path(source).expanduser()
        if path.is_dir():
            refuse_revision(source, revision)
            return _folder(source, path.resolve())
        if path.is_file():
            refuse_revision(source, revision)
            return _file(source, path.resolve(), cache_dir(cache), notify, native=native_gguf)
        check_repository(source)
        from llmserve.provision.hub import obtain_repository

        found = obtain_repository(source, revision, notify=notify, offline=offline)
        if (found / "config.json").is_file():
            refuse_unservable(source, found)
        return ResolvedModel(source=source, path=str(found), name=source.rpartition("/")[2])
    refuse_revision(source, revision)
    from llmserve.provision.demo import obtain_demo

    folder = obtain_demo(cache_dir(cache), notify)
    # It is there to be tried: without compilation it answers a minute earlier, and so
    # small a model rambles at temperature 1 (its authors recommend these values).
    sampling = {"temperature": 0.2, "top_p": 0.9}
    defaults = {"enforce_eager": True, "override_generation_config": sampling}
    return ResolvedModel(source, str(folder), DEMO, is_demo=True, engine_defaults=defaults)


def refuse_revision(source: str, revision: str | None) -> None:
    if revision is not None:
        raise SetupError(
            f"{source!r} has no revisions: --revision {revision} is only for Hugging Face ids."
        )


def _folder(source: str, folder: Path) -> ResolvedModel:
    check_folder(folder)
    if (folder / "config.json").is_file():
        refuse_unservable(source, folder)
    return ResolvedModel(source=source, path=str(folder), name=folder.name or source)


def _file(source: str, file: Path, cache: Path, notify: Notify, *, native: bool) -> ResolvedModel:
    if file.suffix.lower() != ".gguf":
        hint = " Give its folder." if (file.parent / "config.json").is_file() else ""
        if file.suffix.lower() in PICKLES:
            hint = " Loading a pickle runs code that is in it; obtain the model as SafeTensors."
        raise SetupError(f"{source} is a file, but no .gguf file.{hint}")
    from llmserve.provision.gguf import check_magic, conversion_notes, convert_gguf

    check_magic(file)
    refuse_unservable(source, file)
    if native:
        from llmserve.provision.native_gguf import engine_defaults, why_not

        reason = why_not(file)
        if reason is None:
            folder = convert_gguf(file, cache, notify, weights=False)
            defaults, notes = engine_defaults(folder), conversion_notes(folder)
            return ResolvedModel(
                source, str(file), file.stem, notes=notes, engine_defaults=defaults
            )
    folder = convert_gguf(file, cache, notify)
    return ResolvedModel(source, str(folder), file.stem, notes=conversion_notes(folder))


def refuse_unservable(source: str, path: Path) -> None:
    """Look at the headers before anything is converted or loaded. Raises ``SetupError``."""
    from llmserve.modelfile import ModelFileError, describe, refusal

    try:
        reason = refusal(describe(path))
    except ModelFileError as error:
        raise SetupError(f"{source} cannot be served: {error.message}") from error
    if reason is not None:
        raise SetupError(f"{source} cannot be served. {reason}")


def check_folder(folder: Path) -> None:
    """Refuse a folder that vLLM could not load, or should not. Raises ``SetupError``."""
    names = sorted(each.name for each in folder.iterdir() if each.is_file())
    weights = [name for name in names if name.endswith(".safetensors")]
    if "adapter_config.json" in names and "config.json" not in names:
        raise SetupError(
            f"{folder} holds a LoRA adapter, not a model. Serve its base model with"
            " engine.enable_lora."
        )
    if "config.json" not in names and "params.json" not in names:
        files = [name for name in names if name.endswith(".gguf")]
        if files:
            raise SetupError(f"{folder} holds GGUF files: give one of them, {folder / files[0]}.")
        raise SetupError(f"{folder} is not a model: it has no config.json.")
    if weights:
        return
    pickles = [name for name in names if name.endswith(PICKLES)]
    if pickles:
        raise SetupError(
            f"{folder} has its weights as pickles only ({pickles[0]}). Loading a pickle runs code"
            " that is in it, so llmserve does not. Obtain or save the model as SafeTensors."
        )
    raise SetupError(f"{folder} has no weights: there is no .safetensors file in it.")


def check_repository(source: str) -> None:
    """Refuse what cannot be a Hugging Face id, with the likeliest reason."""
    looks_like_path = source.startswith(("/", ".", "~")) or source.count("/") > 1
    if looks_like_path or source.lower().endswith(".gguf"):
        raise SetupError(f"There is no file or folder {source}.{_similar(Path(source))}")
    if not REPOSITORY.fullmatch(source):
        raise SetupError(
            f"{source!r} is no model: neither a file, nor a folder, nor a Hugging Face id"
            " (owner/name, of letters, digits, '-', '_' and '.'), nor 'demo'."
        )
    if difflib.SequenceMatcher(None, source.lower(), DEMO).ratio() > 0.7:
        raise SetupError(f"There is no model {source!r}. The demo model is called 'demo'.")


def _similar(path: Path) -> str:
    path = path.expanduser()
    try:
        names = [each.name for each in path.parent.iterdir()]
    except OSError:
        return f" There is no folder {path.parent} either." if str(path.parent) != "." else ""
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(str(path.parent / name) for name in near)}?" if near else ""
