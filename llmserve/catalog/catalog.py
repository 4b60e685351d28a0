"""Models by name, and cached answers about them."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from llmserve import __version__
from llmserve.catalog.places import MAIN, Place
from llmserve.catalog.reader import Reader
from llmserve.catalog.search import search_of
from llmserve.errors import ModelNotFound, NotReady
from llmserve.modelfile import Unreadable, identity
from llmserve.settings import Settings

FRESH_SECONDS = 5.0
"""How long a list of models is taken to be right."""

_RETRY_SECONDS = 1.0
MOST_BYTES = 32 << 20
MOST_ANSWERS = 1000
_NAMES_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Answer:
    """A JSON text, and a tag that changes when a file of the model does. ``body`` is
    ``None`` where the client has the answer already."""

    etag: str
    body: bytes | None


class Catalog:
    """The models of one server. For the event loop: files are looked at in a thread, and
    read in another process."""

    def __init__(self, settings: Settings, reader: Reader | None = None) -> None:
        self._reader = reader or Reader()
        self._names = frozenset((*settings.model.names, *settings.model.default_names))
        self._search = search_of(settings)
        self._places: dict[str, Place] = {}
        self._looked = -FRESH_SECONDS
        self._looking = asyncio.Lock()
        self._answers: OrderedDict[str, bytes] = OrderedDict()
        self._bytes = 0

    async def places(self) -> list[Place]:
        """All models, the served one (under the name ``MAIN``) first if it is here."""
        await self._look(FRESH_SECONDS)
        return list(self._places.values())

    async def find(self, name: str) -> Place:
        """By the name it is listed under, or any name of the served model. Raises
        ``ModelNotFound``; ``NotReady`` while the served model is being obtained."""
        key = MAIN if name in self._names else name
        for age in (FRESH_SECONDS, _RETRY_SECONDS):
            await self._look(age)
            if key in self._places:
                return self._places[key]
        if key == MAIN:
            raise NotReady("The model is not on this machine yet.", retry_after=5.0)
        raise ModelNotFound(name, sorted(each for each in self._places if each)[:_NAMES_SHOWN])

    async def ask(
        self, name: str, question: str, args: Mapping[str, Any], known: str | None = None
    ) -> Answer:
        """``question`` is one of ``answers.QUESTIONS``. ``known`` is the client's
        ``If-None-Match``. Raises ``ModelNotFound``, ``NotReady``, ``ModelFileError`` and
        ``Overloaded``."""
        place = await self.find(name)
        try:
            now = await asyncio.to_thread(identity, place.path)
        except Unreadable:
            self._looked = -FRESH_SECONDS
            raise
        etag = _etag(place, now, question, args)
        if known is not None and (known.strip() == "*" or etag in known):
            return Answer(etag, None)
        if (body := self._answers.get(etag)) is None:
            body = await self._reader.ask(
                question, dict(args), name=place.name or name, path=place.path, root=place.root
            )
            self._keep(etag, body)
        else:
            self._answers.move_to_end(etag)
        return Answer(etag, body)

    async def aclose(self) -> None:
        """End the worker process."""
        await self._reader.aclose()

    async def _look(self, age: float) -> None:
        """List the models again if the list is older than ``age`` seconds."""
        async with self._looking:
            if time.monotonic() - self._looked < age:
                return
            found = await self._reader.ask("places", self._search)
            places = msgspec.json.decode(found, type=list[Place])
            self._places = {place.name: place for place in places}
            self._looked = time.monotonic()

    def _keep(self, etag: str, body: bytes) -> None:
        if etag in self._answers or len(body) > MOST_BYTES // 4:
            return
        self._answers[etag] = body
        self._bytes += len(body)
        while self._bytes > MOST_BYTES or len(self._answers) > MOST_ANSWERS:
            self._bytes -= len(self._answers.popitem(last=False)[1])


def _etag(place: Place, identity: str, question: str, args: Mapping[str, Any]) -> str:
    facts = [__version__, place.path, identity, question, sorted(args.items())]
    return f'"{hashlib.sha256(msgspec.json.encode(facts)).hexdigest()[:32]}"'
