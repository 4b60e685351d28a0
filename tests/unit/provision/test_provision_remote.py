"""Looking into a repository on a hub: only headers cross the network."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from llmserve.errors import SetupError
from llmserve.modelfile import ModelFileError, describe_store
from llmserve.provision.remote import HubStore, parse_target
from tests.unit.modelfile.model_files import llama, raw_safetensors, safetensors

DATA = 30_000_000
CONFIG = b'{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 1}'


class Hub(ThreadingHTTPServer):
    """``ranges``: whether the store of blobs, to which files redirect, obeys them. ``sent``
    counts bytes of files, ``asked`` the requests with their tokens."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes], *, ranges: bool = True, loop: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.ranges, self.loop = files, ranges, loop
        self.sent = 0
        self.asked: list[tuple[str, str | None]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.blobs = f"http://localhost:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        hub = self.server
        hub.asked.append((self.path, self.headers.get("authorization")))
        if self.path.startswith("/api/models/owner/model/tree/main"):
            self.reply_listing()
        elif self.path.startswith("/owner/model/resolve/main/"):
            name = self.path.rpartition("/")[2]
            self.reply(
                302, b"", {"Location": self.path if hub.loop else f"{hub.blobs}/blob/{name}"}
            )
        elif self.path.startswith("/blob/"):
            self.reply_part(hub.files[self.path.removeprefix("/blob/")])
        else:
            self.reply(404, b"{}", {})

    def reply_listing(self) -> None:
        """Two pages."""
        rows = [
            {"type": "file", "path": name, "size": 130, "lfs": {"size": len(content)}}
            for name, content in self.server.files.items()
        ]
        rows.append({"type": "directory", "path": "onnx", "size": 0})
        first = "cursor" not in self.path
        headers = {"Link": f'<{self.server.url}{self.path}?cursor=1>; rel="next"'} if first else {}
        self.reply(200, json.dumps(rows[:1] if first else rows[1:]).encode(), headers)

    def reply_part(self, content: bytes) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("range", ""))
        if wanted is None or not self.server.ranges:
            self.reply(200, content, {})
            return
        start, end = int(wanted[1]), min(int(wanted[2]), len(content) - 1)
        shown = f"bytes {start}-{end}/{len(content)}"
        self.reply(206, content[start : end + 1], {"Content-Range": shown})

    def reply(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            for at in range(0, len(content), 1 << 16):
                self.wfile.write(content[at : at + (1 << 16)])
                self.server.sent += len(content[at : at + (1 << 16)])
        except OSError:
            self.close_connection = True  # the client has seen enough

    def log_message(self, *_: object) -> None:
        """Quiet."""


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()


def files() -> dict[str, bytes]:
    weights = {f"model.layers.{i}.w": ("BF16", (1000, 1000)) for i in range(DATA // 2_000_000)}
    return {"model.safetensors": safetensors(weights), "config.json": CONFIG}


def environ(hub: Hub) -> dict[str, str]:
    return {"HF_ENDPOINT": hub.url}


@pytest.mark.parametrize("ranges", [True, False])
def test_only_the_header_is_fetched(ranges: bool) -> None:
    with serving(Hub(files(), ranges=ranges)) as hub:
        with HubStore("owner/model", environ=environ(hub)) as store:
            found = describe_store(store)
        assert found.architecture == "LlamaForCausalLM"
        assert found.name == "owner/model"
        assert found.total_bytes == len(hub.files["model.safetensors"])
        assert found.problems == ()
        # A server without ranges is cut off; what was on its way by then is lost.
        assert hub.sent < (1_000_000 if ranges else DATA / 2)


def test_a_file_of_a_repository() -> None:
    both = {"a.gguf": llama().build(), "b.gguf": llama().build()}
    with serving(Hub(both)) as hub, HubStore("owner/model", environ=environ(hub)) as store:
        assert describe_store(store, "a.gguf").family == "llama"
        with pytest.raises(ModelFileError, match="several models"):
            describe_store(store)
        with pytest.raises(ModelFileError, match="not in owner/model"):
            describe_store(store, "c.gguf")


def test_the_token_stays_with_the_hub() -> None:
    with serving(Hub(files())) as hub:
        with HubStore("owner/model", environ=environ(hub) | {"HF_TOKEN": "hf_x"}) as store:
            describe_store(store)
        for path, token in hub.asked:
            assert token == (None if path.startswith("/blob/") else "Bearer hf_x"), path


def test_a_hostile_header_is_bounded() -> None:
    claims = raw_safetensors(b"{" + b" " * 70_000_000)
    with serving(Hub({"model.safetensors": claims})) as hub:
        with (
            HubStore("owner/model", environ=environ(hub)) as store,
            pytest.raises(ModelFileError, match="longer than"),
        ):
            describe_store(store)
        assert hub.sent < 1_000_000


def test_redirects_end() -> None:
    with (
        serving(Hub(files(), loop=True)) as hub,
        HubStore("owner/model", environ=environ(hub)) as store,
        pytest.raises(ModelFileError, match="redirects"),
    ):
        describe_store(store)


def test_what_is_not_there_is_told() -> None:
    with serving(Hub(files())) as hub:
        store = HubStore("owner/nothing", environ=environ(hub))
        with store, pytest.raises(SetupError, match="set HF_TOKEN"):
            describe_store(store)
    with (
        HubStore("owner/model", environ={"HF_ENDPOINT": "http://127.0.0.1:9"}) as gone,
        pytest.raises(ModelFileError, match="cannot be read from"),
    ):
        describe_store(gone)
    with pytest.raises(SetupError, match="HF_HUB_OFFLINE"):
        HubStore("owner/model", environ={"HF_HUB_OFFLINE": "1"})


def test_on_the_command_line() -> None:
    with serving(Hub(files())) as hub:
        command = [sys.executable, "-m", "llmserve", "inspect", "hf:owner/model", "--json"]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env=os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "NO_PROXY": "*"},
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["architecture"] == "LlamaForCausalLM"
        assert hub.sent < 1_000_000


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("hf:a/b", ("a/b", "main", None)),
        ("hf:a/b@v1.0", ("a/b", "v1.0", None)),
        ("hf:a/b:x.gguf", ("a/b", "main", "x.gguf")),
        ("hf:a/b@pr/1:x.gguf", ("a/b", "pr/1", "x.gguf")),
    ],
)
def test_targets(text: str, parts: tuple[Any, ...]) -> None:
    assert parse_target(text) == parts


@pytest.mark.parametrize("text", ["hf:", "hf:a", "hf:a/b/c", "hf:../b", "hf:a/b@..", "hf:a/b:../x"])
def test_what_is_no_target(text: str) -> None:
    with pytest.raises(SetupError):
        parse_target(text)
