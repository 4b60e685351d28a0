"""Formats by content, and files that are not opened."""

from __future__ import annotations

import os
import pickle
import socket
import zipfile
from pathlib import Path

import pytest

from llmserve.modelfile import (
    Format,
    ModelFileError,
    Refused,
    UnknownFormat,
    Unreadable,
    describe,
    detect,
)
from tests.unit.modelfile.conftest import Described
from tests.unit.modelfile.model_files import apr1, apr2, aprn, llama, safetensors


def kind(path: Path, data: bytes) -> Format:
    path.write_bytes(data)
    return detect(path).format


def test_by_content_and_not_by_name(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    assert kind(path, llama().build()) is Format.GGUF
    assert kind(path, llama(order=">").build()) is Format.GGUF
    assert kind(path, safetensors({"a": ("F32", (1,))})) is Format.SAFETENSORS
    assert kind(path, apr2({})) is Format.APR
    assert kind(path, aprn(b"\x80")) is Format.APR
    assert kind(path, apr1([], {})) is Format.APR
    assert kind(path, b"") is Format.UNKNOWN
    assert detect(path).readable is False


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch /tmp/llmserve-was-executed",)


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_are_refused_with_what_they_would_import(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(pickle.dumps(Evil(), protocol))
    with pytest.raises(Refused, match=r"executes the code it names .*system"):
        describe(path)
    assert not Path("/tmp/llmserve-was-executed").exists()  # noqa: S108


def test_pytorch_checkpoints_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(Evil(), 2))
        file.writestr("archive/data/0", bytes(100))
    with pytest.raises(Refused, match=r"PyTorch checkpoint .*system"):
        describe(path)


def test_unknown_files_are_described_by_their_first_bytes(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(UnknownFormat, match=r"76 65 72 .*Git LFS pointer"):
        describe(path)
    path.write_bytes(b"PK\3\4" + bytes(26) + b"word/document.xml")
    with pytest.raises(UnknownFormat, match="zip"):
        describe(path)


def test_apr_files(described: Described) -> None:
    values = {"architecture": "llama", "name": "Small", "license": "mit", "num_layers": 2}
    values |= {"hidden_size": 64, "num_heads": 4, "num_kv_heads": 2, "chat_template": "{{ x }}"}
    values |= {"special_tokens": {"bos_token": "<s>"}, "tokenizer.vocabulary": ["[ab]"] * 90_000}
    tensors = {"a": (0, (3, 4), 48), "b": (12, (256,), 144), "c": (128, (32,), 18)}
    found = described(apr2(tensors, values))
    assert (found.format, found.version, found.problems) == (Format.APR, "2.0", ())
    assert [each.dtype for each in found.tensors] == ["F32", "Q4_K", "APR_Q4"]
    assert found.parameters.total == 12 + 256 + 32
    assert (found.name, found.family, found.licence) == ("Small", "llama", "mit")
    assert found.attention is not None
    assert found.attention.kv_heads == 2
    assert found.tokenizer is not None
    assert found.tokenizer.special["bos"].text == "<s>"
    assert "not shown" in str(found.metadata["tokenizer.vocabulary"])
    found = described(apr2(tensors, values, checksum=1, flags=16))
    assert sorted(each.kind for each in found.problems) == ["checksum", "metadata"]
    found = described(apr2({"a": (0, (3, 4), 40)}))
    assert [each.kind for each in found.problems] == ["size"]


def test_older_apr_files(described: Described) -> None:
    tensor = {"name": "l", "dtype": "F32", "shape": [2, 2], "offset": 0, "size": 16}
    found = described(apr1([tensor], {"model_type": "mlp"}))
    assert (found.version, found.family, found.problems) == ("1 (APR1)", "mlp", ())
    assert found.tensors[0].shape == (2, 2)
    found = described(aprn(b"\x82\xa4name\xa3abc\xa1k\x93\x01\x02\xcb\x3f\xf0" + bytes(6)))
    assert (found.version, found.name) == ("1.0 (APRN)", "abc")


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Refused, match="a pipe"):
        describe(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        with pytest.raises(Refused, match="a socket"):
            describe(tmp_path / "socket")
    with pytest.raises(Refused, match="a device"):
        describe("/dev/zero")
    (tmp_path / "link").symlink_to("/dev/zero")
    with pytest.raises(Refused, match="a device"):
        describe(tmp_path / "link")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("loop", "missing", "mis\0sing", "x" * 300):
        with pytest.raises((Unreadable, Refused)):
            describe(tmp_path / name)


def test_links_stay_inside_the_root(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for each in (inside, outside):
        each.mkdir()
        (each / "model.gguf").write_bytes(llama().build())
    (inside / "good.gguf").symlink_to("model.gguf")
    (inside / "bad.gguf").symlink_to(outside / "model.gguf")
    (inside / "folder").symlink_to(outside)
    assert describe(inside / "good.gguf", root=inside).name == "Tiny"
    assert describe(inside / "bad.gguf").name == "Tiny"
    for path in ("bad.gguf", "folder/model.gguf", "folder", "../outside/model.gguf"):
        with pytest.raises(Refused, match="outside the folder"):
            describe(inside / path, root=inside)


def test_messages_never_tell_where_files_lie(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path / "no" / "folder", tmp_path):
        with pytest.raises(ModelFileError) as caught:
            describe(path)
        assert str(tmp_path.parent) not in caught.value.message
