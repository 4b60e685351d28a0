"""What users call a model, and the mistakes they make."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmserve.errors import SetupError
from llmserve.provision import hub
from llmserve.provision.resolve import check_repository, resolve_model
from tests.unit.modelfile.model_files import Gguf, safetensors


def model(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        (folder / name).write_text("{}")
    return folder


def whole(folder: Path) -> Path:
    """A folder that can be served as far as its headers tell."""
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.safetensors").write_bytes(safetensors({"a": ("F32", (2,))}))
    return folder


def test_folder_is_itself(tmp_path: Path) -> None:
    folder = whole(tmp_path / "mine")
    found = resolve_model(str(folder))
    assert (found.path, found.name, found.is_demo) == (str(folder), "mine", False)


def test_damaged_files_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    folder = whole(tmp_path / "mine")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(SetupError, match="not complete"):
        resolve_model(str(folder))
    weights.write_bytes(b"\x00" * 100)
    with pytest.raises(SetupError, match="cannot be served"):
        resolve_model(str(folder))
    (tmp_path / "adapter.gguf").write_bytes(
        Gguf({"general.architecture": ("str", "llama"), "adapter.type": ("str", "lora")}).build()
    )
    with pytest.raises(SetupError, match="an adapter"):
        resolve_model(str(tmp_path / "adapter.gguf"), cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ((), "no config.json"),
        (("model.safetensors",), "no config.json"),
        (("config.json",), "no weights"),
        (("config.json", "pytorch_model.bin"), "runs code"),
        (("config.json", "weights.pt"), "runs code"),
        (("model-q4.gguf",), "give one of them, .*model-q4.gguf"),
        (("adapter_config.json", "adapter_model.safetensors"), "LoRA adapter"),
    ],
)
def test_other_folders_are_refused(tmp_path: Path, names: tuple[str, ...], reason: str) -> None:
    folder = model(tmp_path / "mine", *names)
    with pytest.raises(SetupError, match=reason):
        resolve_model(str(folder))


def test_other_files_are_refused(tmp_path: Path) -> None:
    folder = model(tmp_path / "mine", "config.json", "model.safetensors", "model.pt")
    with pytest.raises(SetupError, match="Give its folder"):
        resolve_model(str(folder / "model.safetensors"))
    with pytest.raises(SetupError, match="runs code"):
        resolve_model(str(folder / "model.pt"))


def test_gguf_file_is_converted(tiny_gguf: Path, converted: Path) -> None:
    found = resolve_model(str(tiny_gguf), cache=converted.parent.parent)
    assert (found.path, found.name, found.notes) == (str(converted), "tiny", ())


def test_demo_model(demo_folder: Path) -> None:
    found = resolve_model("demo")
    assert (found.path, found.name, found.is_demo) == (str(demo_folder), "demo", True)


@pytest.mark.parametrize("source", ["demo", "."])
def test_revision_is_for_hugging_face_only(source: str) -> None:
    with pytest.raises(SetupError, match="--revision v1"):
        resolve_model(source, "v1")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("./nowhere", "no file or folder ./nowhere"),
        ("/nowhere/at/all", "no file or folder"),
        ("a/b/c", "no file or folder"),
        ("model.gguf", "no file or folder"),
        ("owner/na me", "is no model"),
        ("owner/", "is no model"),
        ("owner/na..me", "is no model"),
        ("-x", "is no model"),
        ("owner/" + "n" * 100, "is no model"),
        ("Demo", "called 'demo'"),
        ("demoo", "called 'demo'"),
    ],
)
def test_what_cannot_be_a_repository(source: str, reason: str) -> None:
    with pytest.raises(SetupError, match=reason):
        check_repository(source)


@pytest.mark.parametrize("source", ["gpt2", "Qwen/Qwen3-0.6B", "org/a_b.c-d"])
def test_what_can_be_a_repository(source: str) -> None:
    check_repository(source)


def test_typing_error_in_a_path_is_helped(tmp_path: Path) -> None:
    folder = model(tmp_path / "smollm", "config.json")
    with pytest.raises(SetupError, match=f"Did you mean {folder}"):
        resolve_model(str(tmp_path / "smolm"))


def test_repository_is_obtained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def obtain(name: str, revision: str | None, **_: object) -> Path:
        asked.append((name, revision))
        return tmp_path

    monkeypatch.setattr(hub, "obtain_repository", obtain)
    found = resolve_model("owner/Name", "v2")
    assert (found.path, found.name, asked) == (str(tmp_path), "Name", [("owner/Name", "v2")])


def test_offline_and_not_cached_says_how_to_pull() -> None:
    with pytest.raises(SetupError, match="llmserve pull owner/never-seen"):
        resolve_model("owner/never-seen", offline=True)
