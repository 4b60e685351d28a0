"""Downloading from Hugging Face, against a hub on the loopback interface."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hub_server import Hub, serving
from huggingface_hub import constants

from llmserve.errors import SetupError
from llmserve.provision.hub import obtain_repository

SAFE = {
    "config.json": b"{}",
    "model.safetensors": b"w" * 1000,
    "tokenizer.json": b"{}",
    "chat_template.jinja": b"x",
}
UNSAFE = {"pytorch_model.bin": b"p", "original/consolidated.00.pth": b"p", "README.md": b"r"}

Start = Callable[..., Hub]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with ExitStack() as stack:
        yield lambda *args, **options: stack.enter_context(serving(Hub(*args, **options)))


def test_only_what_serving_needs_is_downloaded(start: Start) -> None:
    hub = start({**SAFE, **UNSAFE, "consolidated.safetensors": b"twice"})
    seen: list[tuple[str, float | None]] = []
    folder = obtain_repository(
        "owner/model", endpoint=hub.url, notify=lambda *each: seen.append(each)
    )
    assert {each.name for each in folder.iterdir()} == set(SAFE)
    assert set(hub.fetched) == set(SAFE)
    assert seen[0] == ("Asking for owner/model", None)
    assert seen[-1] == ("Downloading owner/model (0 MB)", 1.0)


def test_second_time_downloads_nothing(start: Start) -> None:
    hub = start(SAFE)
    first = obtain_repository("owner/model", endpoint=hub.url)
    hub.fetched.clear()
    assert obtain_repository("owner/model", endpoint=hub.url) == first
    assert hub.fetched == []


def test_cached_copy_serves_when_the_hub_is_broken(start: Start) -> None:
    hub = start(SAFE)
    folder = obtain_repository("owner/model", "main", endpoint=hub.url)
    link = folder.parent.parent / "refs"
    link.mkdir(exist_ok=True)
    (link / "main").write_text(folder.name)
    hub.status = 503
    assert obtain_repository("owner/model", endpoint=hub.url) == folder
    assert obtain_repository("owner/model", offline=True) == folder


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (UNSAFE, "runs code"),
        ({"config.json": b"{}"}, "no weights"),
        ({"model-q4.gguf": b"GGUF"}, "holds GGUF files"),
    ],
)
def test_repositories_without_safetensors_are_refused(
    start: Start, files: dict[str, bytes], reason: str
) -> None:
    hub = start(files)
    with pytest.raises(SetupError, match=reason):
        obtain_repository("owner/model", endpoint=hub.url)
    assert hub.fetched == []


@pytest.mark.parametrize(
    ("status", "code", "reason"),
    [
        (404, "RepoNotFound", "no model 'owner/model'"),
        (404, "RevisionNotFound", "no revision 'v9'"),
        (403, "GatedRepo", "accepted its terms"),
        (503, "", "cannot be reached"),
    ],
)
def test_refusals_of_the_hub_are_explained(
    start: Start, status: int, code: str, reason: str
) -> None:
    hub = start({}, status=status, code=code)
    with pytest.raises(SetupError, match=reason):
        obtain_repository("owner/model", "v9", endpoint=hub.url)


def test_unreachable_hub_is_named(start: Start) -> None:
    hub = start({})
    url = hub.url
    hub.shutdown()
    hub.server_close()
    with pytest.raises(SetupError, match="cannot be reached"):
        obtain_repository("owner/model", endpoint=url)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"adapter_config.json": b"{}", "adapter_model.safetensors": b"w"}, "a LoRA adapter"),
        ({"model.safetensors": b"w"}, "no config.json"),
    ],
)
def test_what_cannot_be_served_is_not_downloaded(
    start: Start, files: dict[str, bytes], reason: str
) -> None:
    hub = start(files)
    with pytest.raises(SetupError, match=reason):
        obtain_repository("owner/model", endpoint=hub.url)
    assert hub.fetched == []
