"""Which models are found, and which are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmserve.catalog.places import MAIN, Place, find_places
from llmserve.provision.hubcache import hub_cache_dir, snapshot
from llmserve.provision.locate import locate_model, root_of
from tests.unit.modelfile.model_files import llama, safetensors


def find(tmp_path: Path, **more: Any) -> dict[str, Place]:
    search: dict[str, Any] = {
        "source": None,
        "revision": None,
        "folders": [],
        "hub_cache": str(tmp_path / "no-hub"),
        "list_hub": False,
        "adapters": {},
    }
    return {place.name: place for place in find_places(**{**search, **more})}


def folder_model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(safetensors({"a": ("F32", (2,))}))
    return folder


def repository(cache: Path, name: str, *commits: str, main: str | None = None) -> Path:
    folder = cache / f"models--{name.replace('/', '--')}"
    for commit in commits:
        folder_model(folder / "snapshots" / commit)
    if main:
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(main)
    return folder


def test_folders_are_walked(tmp_path: Path) -> None:
    folder_model(tmp_path / "a")
    folder_model(tmp_path / "org" / "b")
    folder_model(tmp_path / "one" / "two" / "three" / "deep")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "x.gguf").write_bytes(llama().build())
    for part in (1, 2):
        (tmp_path / f"split-{part:05d}-of-00002.gguf").write_bytes(llama().build())
    (tmp_path / "notes.txt").write_text("no model")
    found = find(tmp_path, folders=[str(tmp_path)])
    assert set(found) == {"a", "org/b", "split-00001-of-00002.gguf"}
    assert found["a"].bytes == sum(each.stat().st_size for each in (tmp_path / "a").iterdir())
    assert found["a"].root == str(tmp_path)


def test_a_folder_that_is_one_model_has_no_parts(tmp_path: Path) -> None:
    model = folder_model(tmp_path / "m")
    folder_model(model / "checkpoint")
    assert set(find(tmp_path, folders=[str(tmp_path)])) == {"m"}


def test_the_first_of_two_with_one_name_counts(tmp_path: Path) -> None:
    one, two = folder_model(tmp_path / "1" / "m"), folder_model(tmp_path / "2" / "m")
    found = find(tmp_path, folders=[str(one.parent), str(two.parent), str(tmp_path / "nowhere")])
    assert found["m"].path == str(one)


def test_the_served_model_and_adapters(tmp_path: Path) -> None:
    model, adapter = folder_model(tmp_path / "m"), folder_model(tmp_path / "adapter")
    found = find(tmp_path, source=str(model), adapters={"pirate": str(adapter)})
    assert list(found) == [MAIN, "pirate"]
    assert found["pirate"].origin == "adapter"
    assert MAIN not in find(tmp_path, source="owner/not-here")


def test_the_hub_cache(tmp_path: Path) -> None:
    repository(tmp_path, "acme/one", "old", "new", main="new")
    repository(tmp_path, "acme/two")
    found = find(tmp_path, hub_cache=str(tmp_path), list_hub=True)
    assert set(found) == {"acme/one"}
    assert found["acme/one"].path.endswith("snapshots/new")
    assert found["acme/one"].root.endswith("models--acme--one")
    main = find(tmp_path, hub_cache=str(tmp_path), source="acme/one", revision="old")[MAIN]
    assert main.path.endswith("snapshots/old")


def test_revisions(tmp_path: Path) -> None:
    folder = repository(tmp_path, "acme/one", "c0ffee")
    assert snapshot(folder) == folder / "snapshots" / "c0ffee"
    assert snapshot(folder, "c0ffee") == folder / "snapshots" / "c0ffee"
    assert snapshot(folder, "v2") is None
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("../../../etc")
    assert snapshot(folder, "main") is None


def test_where_the_cache_is() -> None:
    assert hub_cache_dir({"HF_HUB_CACHE": "/a", "HF_HOME": "/b"}) == Path("/a")
    assert hub_cache_dir({"HF_HOME": "/b"}) == Path("/b/hub")
    assert hub_cache_dir({"XDG_CACHE_HOME": "/c"}) == Path("/c/huggingface/hub")


def test_where_a_model_lies(tmp_path: Path, demo_folder: Path) -> None:
    assert locate_model("demo", None, tmp_path) == demo_folder
    assert locate_model(str(tmp_path), None, tmp_path) == tmp_path
    assert locate_model("../x/y", None, tmp_path) is None
    commit = repository(tmp_path, "a/b", "c") / "snapshots" / "c"
    assert locate_model("a/b", None, tmp_path) == commit
    assert root_of(commit) == commit.parent.parent
    assert root_of(commit / "model.safetensors") == commit.parent.parent
    assert root_of(tmp_path) == tmp_path
