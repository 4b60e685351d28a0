"""A Hugging Face repository → the Hugging Face cache: SafeTensors, never pickles.

huggingface_hub does the work, so its own settings apply (HF_HOME, HF_TOKEN, HF_ENDPOINT,
HF_HUB_OFFLINE), downloads go on where they stopped, and other programs find the model.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from llmserve.errors import SetupError
from llmserve.provision.cache import in_words, require_space
from llmserve.provision.progress import Notify, silent

WANTED = (
    *("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", "*.py"),
    *("additional_chat_templates/*", "tokenizer/*"),
)
UNWANTED = (
    *("original/*", "onnx/*", "openvino/*", "coreml/*", "flax_*", "tf_*", "*.msgpack", "*.h5"),
    *("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl"),
)
PROBE_SECONDS = 10.0


def obtain_repository(
    name: str,
    revision: str | None = None,
    *,
    notify: Notify = silent,
    offline: bool = False,
    endpoint: str | None = None,
) -> Path:
    """The folder of a repository in the Hugging Face cache, downloaded if need be.

    Without the network a complete copy in the cache is used as it is. Raises
    ``SetupError``: no such repository, no access, only pickles, not reachable, no space.
    """
    try:
        from huggingface_hub import constants
    except ImportError as error:
        raise SetupError(
            f"huggingface_hub is needed to obtain {name}; it comes with the engine: run"
            " 'make setup', or pip install 'llmserve[cpu]' (docs/install.md)."
        ) from error
    if offline or constants.HF_HUB_OFFLINE:
        found = find_cached(name, revision)
        if found is None:
            raise SetupError(
                f"{name}{_at(revision)} is not in the Hugging Face cache"
                f" ({constants.HF_HUB_CACHE}), and the network is not to be used"
                f" (HF_HUB_OFFLINE). With a network, run: llmserve pull {name}"
            )
        return found
    return _download(name, revision, notify, endpoint)


def find_cached(name: str, revision: str | None = None) -> Path | None:
    """The complete copy of a repository that is in the cache, without the network."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, OSError, ValueError):
        return None
    complete = (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))
    return folder if complete else None


def _download(name: str, revision: str | None, notify: Notify, endpoint: str | None) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    notify(f"Asking for {name}{_at(revision)}", None)
    try:
        info = HfApi(endpoint=endpoint).model_info(
            name, revision=revision, files_metadata=True, timeout=PROBE_SECONDS
        )
    except Exception as error:
        found = find_cached(name, revision) if not _is_answer(error) else None
        if found is None:
            raise SetupError(_reason(name, revision, error)) from error
        notify(f"The hub cannot be reached; using the copy of {name} in the cache", None)
        return found
    sizes = {each.rfilename: each.size or 0 for each in info.siblings or []}
    wanted = _choose(name, sizes)
    total = sum(sizes[each] for each in wanted)
    _require_space(total, name)
    try:
        return Path(
            snapshot_download(
                name,
                revision=info.sha or revision,
                allow_patterns=wanted,
                endpoint=endpoint,
                tqdm_class=_progress_bars(f"Downloading {name} ({in_words(total)})", notify),
            )
        )
    except Exception as error:
        raise SetupError(
            f"The download of {name} broke off: {_first_line(error)} Run the same command again:"
            " it goes on where it stopped."
        ) from error


def _choose(name: str, sizes: Iterable[str]) -> list[str]:
    """The files that serving needs; refuses repositories without SafeTensors."""
    from fnmatch import fnmatch

    def matches(file: str, patterns: Iterable[str]) -> bool:
        return any(fnmatch(file, pattern) for pattern in patterns)

    files = [each for each in sizes if matches(each, WANTED) and not matches(each, UNWANTED)]
    weights = [each for each in files if each.endswith(".safetensors") and "/" not in each]
    if not weights:
        pickles = [each for each in sizes if each.endswith((".bin", ".pt", ".pth"))]
        ggufs = [each for each in sizes if each.endswith(".gguf")]
        if ggufs:
            raise SetupError(
                f"{name} holds GGUF files: download one of them ({ggufs[0]}) and give its path."
            )
        if pickles:
            raise SetupError(
                f"{name} has its weights as pickles only ({pickles[0]}). Loading a pickle runs"
                " code that is in it, so llmserve does not. Look for a SafeTensors version."
            )
        raise SetupError(f"{name} has no weights that can be served: there is no .safetensors.")
    if "config.json" not in files and "params.json" not in files:
        if "adapter_config.json" in files:
            raise SetupError(
                f"{name} is a LoRA adapter, not a model: serve its base model with"
                " engine.enable_lora."
            )
        raise SetupError(f"{name} cannot be served: it has no config.json.")
    if any(not each.startswith("consolidated") for each in weights):
        # Mistral's repositories hold the same weights twice.
        files = [each for each in files if not each.startswith("consolidated")]
    return sorted(files)


def _require_space(total: int, name: str) -> None:
    from huggingface_hub import constants

    try:
        require_space(Path(constants.HF_HUB_CACHE), total, name)
    except SetupError as error:
        raise SetupError(error.message.replace("LLMSERVE_CACHE", "HF_HOME")) from error


def _progress_bars(text: str, notify: Notify) -> Any:
    """A tqdm class that reports the byte counts to ``notify`` and draws nothing."""
    import io

    from tqdm.auto import tqdm

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            self.counts_bytes = kwargs.get("unit") == "B"
            super().__init__(*args, **{**kwargs, "file": io.StringIO(), "disable": False})

        def update(self, n: float | None = 1) -> bool | None:
            shown: bool | None = super().update(n)
            if self.counts_bytes and self.total:
                notify(text, min(1.0, self.n / self.total))
            return shown

    return Bar


def _is_answer(error: Exception) -> bool:
    """Whether the hub itself said no (then the cache is no way around it)."""
    from huggingface_hub.errors import HfHubHTTPError

    status = getattr(getattr(error, "response", None), "status_code", 0)
    return isinstance(error, HfHubHTTPError) and status < 500


def _reason(name: str, revision: str | None, error: Exception) -> str:
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, GatedRepoError):
        return (
            f"{name} is open only to those who accepted its terms. Accept them at"
            f" {constants.ENDPOINT}/{name}, then set HF_TOKEN to a token of yours."
        )
    if isinstance(error, RevisionNotFoundError):
        return f"{name} has no revision {revision!r}."
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"There is no model {name!r}: no folder or file here, and no Hugging Face repository"
            " that can be seen. If it is private, set HF_TOKEN."
        )
    return (
        f"{name} is not in the cache, and {constants.ENDPOINT} cannot be reached:"
        f" {_first_line(error)} Check the network (HTTPS_PROXY, HF_ENDPOINT for a mirror), or give"
        " the path of a model that is on this machine."
    )


def _first_line(error: Exception) -> str:
    text = str(error).strip().partition("\n")[0] or type(error).__name__
    return text if text.endswith(".") else text + "."


def _at(revision: str | None) -> str:
    return f"@{revision}" if revision else ""
