"""A Hugging Face hub on the loopback interface, with what downloading a model asks of it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """``files``: name to content, of the one repository ``owner/model``. ``status``: the
    answer to everything, where it is not 200. ``fetched``: what was downloaded."""

    def __init__(self, files: Mapping[str, bytes], status: int = 200, code: str = "") -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.status, self.code = files, status, code
        self.fetched: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = self.path.partition("?")[0]
        if self.server.status != 200:
            self.reply(self.server.status, b"{}", {"X-Error-Code": self.server.code})
        elif path.startswith("/api/models/owner/model/tree/"):
            tree = [
                {"type": "file", "path": name, "size": len(content), "oid": f"oid-{name}"}
                for name, content in self.server.files.items()
            ]
            self.reply_json(tree)
        elif path.startswith("/api/models/owner/model"):
            files = [
                {"rfilename": name, "size": len(content), "blobId": f"oid-{name}"}
                for name, content in self.server.files.items()
            ]
            self.reply_json({"id": "owner/model", "sha": COMMIT, "siblings": files})
        elif path.startswith(f"/owner/model/resolve/{COMMIT}/"):
            name = path.removeprefix(f"/owner/model/resolve/{COMMIT}/")
            if self.command == "GET":
                self.server.fetched.append(name)
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{name}"'}
            self.reply(200, self.server.files[name], headers)
        else:
            self.reply(404, b"{}", {})

    def reply_json(self, content: Any) -> None:
        self.reply(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def reply(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

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
