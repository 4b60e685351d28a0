"""A model on a Hugging Face hub, looked into without downloading it: its files' headers
come by ranged requests.

Outside facts: ``GET /api/models/{name}/tree/{revision}`` lists files with their sizes
(``lfs.size`` where the file lies in large file storage), and ``GET
/{name}/resolve/{revision}/{file}`` answers, often after a redirect to a store of blobs, with
206 and ``Content-Range`` to a ``Range``. A server that ignores ranges sends the whole file:
it is read as far as needed, and the connection closed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from llmserve.errors import SetupError
from llmserve.modelfile import Unreadable
from llmserve.modelfile.source import HEADER_BUDGET
from llmserve.provision.resolve import REPOSITORY

if TYPE_CHECKING:
    import httpx

ENDPOINT = "https://huggingface.co"
SECONDS = 15.0
MOST_BYTES = 512 << 20
"""Read of one model, all files together."""

MOST_FILES = 10_000
_FIRST_READ = 1 << 18
_PAGES = 20
_REDIRECTS = 5
_LISTING = 16 << 20
_TARGET = re.compile(r"hf:([^/@:\s]+/[^/@:\s]+)(?:@([\w./-]{1,200}))?(?::([^/\\\s]{1,300}))?")
_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")


def parse_target(text: str) -> tuple[str, str, str | None]:
    """Name, revision and perhaps a file, of ``hf:ORG/NAME[@REVISION][:FILE]``. Raises
    ``SetupError``."""
    found = _TARGET.fullmatch(text)
    if found is None or not REPOSITORY.fullmatch(found[1]) or ".." in (found[2] or ""):
        raise SetupError(f"{text[:100]!r} is not hf:ORG/NAME[@REVISION][:FILE].")
    return found[1], found[2] or "main", found[3]


class HubStore:
    """The files of one repository. A context manager: it holds connections."""

    def __init__(
        self, name: str, revision: str = "main", *, environ: Mapping[str, str] | None = None
    ) -> None:
        import httpx

        environ = environ or {}
        if environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
            raise SetupError(f"{name} cannot be looked into: HF_HUB_OFFLINE forbids the network.")
        self.name = name
        self._revision = revision
        self._endpoint = (environ.get("HF_ENDPOINT") or ENDPOINT).rstrip("/")
        self._plain_http = urlsplit(self._endpoint).scheme == "http"
        token = environ.get("HF_TOKEN")
        headers = {"authorization": f"Bearer {token}"} if token else {}
        # Redirects are followed by hand: each is checked, and the token stays with the hub.
        self._client = httpx.Client(timeout=SECONDS, follow_redirects=False)
        self._headers = {"accept-encoding": "identity", **headers}
        self._left = MOST_BYTES
        self._sizes: dict[str, int] | None = None

    def __enter__(self) -> HubStore:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def sizes(self) -> Mapping[str, int]:
        if self._sizes is None:
            self._sizes = self._list()
        return self._sizes

    def open(self, name: str) -> RemoteSource:
        if name not in self.sizes():
            raise Unreadable(f"{name} is not in {self.name}.", file=name)
        return RemoteSource(self, name, self.sizes()[name])

    def read(self, name: str, offset: int, size: int) -> bytes:
        """A range of a file. Raises ``Unreadable``."""
        path = f"{quote(self.name)}/resolve/{quote(self._revision, safe='')}/{quote(name)}"
        wanted = {"range": f"bytes={offset}-{offset + size - 1}"}
        if size > self._left:
            raise Unreadable(f"{name}: {MOST_BYTES:,} bytes were read of this model.", file=name)
        data = self._get(f"{self._endpoint}/{path}", wanted, name, offset, size)
        self._left -= len(data)
        return data

    def _list(self) -> dict[str, int]:
        import json

        path = f"api/models/{quote(self.name)}/tree/{quote(self._revision, safe='')}"
        url: str | None = f"{self._endpoint}/{path}"
        found: dict[str, int] = {}
        for _ in range(_PAGES):
            if url is None or len(found) >= MOST_FILES:
                break
            links: dict[str, str] = {}
            text = self._get(url, {}, self.name, 0, _LISTING, links)
            try:
                found |= _files(json.loads(text))
            except ValueError as error:
                raise SetupError(f"{self._endpoint} lists no files of {self.name}.") from error
            url = links.get("next")
            if url and urlsplit(url)[:2] != urlsplit(self._endpoint)[:2]:
                break
        return found

    def _get(
        self,
        url: str,
        headers: Mapping[str, str],
        name: str,
        offset: int,
        size: int,
        links: dict[str, str] | None = None,
    ) -> bytes:
        import httpx

        home = urlsplit(self._endpoint)[:2]
        for _ in range(_REDIRECTS + 1):
            own = self._headers if urlsplit(url)[:2] == home else {"accept-encoding": "identity"}
            try:
                with self._client.stream("GET", url, headers={**own, **headers}) as answer:
                    if answer.next_request is not None:
                        url = self._checked(str(answer.next_request.url), name)
                        continue
                    self._require(answer, name)
                    if links is not None and "next" in answer.links:
                        links["next"] = answer.links["next"]["url"]
                    return _body(answer, name, offset, size)
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                reason = str(error) or type(error).__name__
                raise Unreadable(
                    f"{name} cannot be read from {self._endpoint}: {reason}.", file=name
                ) from error
        raise Unreadable(f"{name}: more than {_REDIRECTS} redirects.", file=name)

    def _checked(self, url: str, name: str) -> str:
        if urlsplit(url).scheme != "https" and not self._plain_http:
            raise Unreadable(f"{name}: the hub redirects away from https.", file=name)
        return url

    def _require(self, answer: httpx.Response, name: str) -> None:
        if answer.status_code in (200, 206):
            return
        if answer.status_code in (401, 403, 404) and name == self.name:
            raise SetupError(
                f"There is no model {self.name!r} (revision {self._revision}) that can be seen at"
                f" {self._endpoint}. If it is private or gated, set HF_TOKEN."
            )
        raise Unreadable(f"{name}: the hub answered {answer.status_code}.", file=name)


class RemoteSource:
    """One file of a repository. What was read of its beginning is kept."""

    mapped = False
    sampled = False

    def __init__(self, store: HubStore, name: str, size: int) -> None:
        self.name, self.size = name, size
        self._store = store
        self._head = b""

    def head(self, size: int) -> bytes:
        end = min(size, self.size, HEADER_BUDGET)
        if len(self._head) < end:
            end = min(max(end, _FIRST_READ), self.size, HEADER_BUDGET)
            start = len(self._head)
            self._head += self._store.read(self.name, start, end - start)
        return self._head

    def read(self, offset: int, size: int) -> bytes:
        end = min(offset + size, self.size)
        if end <= offset:
            return b""
        if end <= min(_FIRST_READ, HEADER_BUDGET) or end <= len(self._head):
            return self.head(end)[offset:end]
        return self._store.read(self.name, offset, end - offset)

    def close(self) -> None:
        self._head = b""


def _files(rows: Any) -> dict[str, int]:
    """Names and sizes of the files at the top of a repository. Raises ``ValueError``."""
    if not isinstance(rows, list):
        raise ValueError("no list")
    found = {}
    for row in rows:
        if not isinstance(row, dict) or row.get("type") != "file":
            continue
        stored = row.get("lfs")
        size = stored.get("size") if isinstance(stored, dict) else row.get("size")
        name = row.get("path")
        if isinstance(name, str) and "/" not in name and type(size) is int and size >= 0:
            found[name] = size
    return found


def _body(answer: httpx.Response, name: str, offset: int, size: int) -> bytes:
    """So much of the body as was asked for, whatever the server sends."""
    skip = offset
    if answer.status_code == 206:
        given = _RANGE.fullmatch(answer.headers.get("content-range", ""))
        if given is None or int(given[1]) != offset:
            raise Unreadable(f"{name}: the server sent another range.", file=name)
        skip = 0
    elif offset > HEADER_BUDGET:
        raise Unreadable(f"{name}: the server cannot send parts of files.", file=name)
    parts, left = [], size
    for part in answer.iter_raw():
        if skip:
            part, skip = part[skip:], max(0, skip - len(part))
        parts.append(part[:left])
        left -= len(parts[-1])
        if left <= 0:
            break
    return b"".join(parts)
