"""Who is calling."""

from __future__ import annotations

import asyncio
import hmac
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llmserve.errors import Unauthenticated
from llmserve.state.protocol import Credential, Store, for_log
from llmserve.state.secrets import digest
from llmserve.types import ANONYMOUS, Caller

log = logging.getLogger(__name__)

REFRESH_SECONDS = 1.0
"""How often we ask whether keys have changed: how long a revoked key may still work."""


@dataclass(frozen=True, slots=True)
class _Known:
    """A digest that opens, or once did. ``until``: Unix seconds."""

    digest: bytes
    caller: Caller
    until: float = math.inf
    revoked: bool = False


class Authenticator:
    """The keys of the store and those of the settings (``static_keys``: every scope, no
    limit), in memory.

    Reads the store once, so that no server begins without its keys: blocks, and raises
    ``Unavailable``. Afterwards ``keep_fresh`` follows the store; while that cannot be
    reached, the last keys that were read stay in force. ``clock``: Unix seconds.
    """

    def __init__(
        self,
        store: Store,
        static_keys: Sequence[str] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._clock = clock
        self._static = [
            _Known(digest(key), Caller(id=f"static-{number}", name=f"static-{number}"))
            for number, key in enumerate(static_keys, 1)
        ]
        self._known: dict[bytes, _Known] = {}
        self._required = False
        self._revision = -1
        self._stale = False
        self.refresh()

    @property
    def required(self) -> bool:
        """Whether a key is needed: as soon as there has ever been one, also when all are
        revoked or expired by now. Once it is, it stays so for this process."""
        return self._required

    def authenticate(
        self, authorization: str | None, api_key: str | None, query_key: str | None = None
    ) -> Caller:
        """The caller behind ``Authorization: Bearer …`` (OpenAI), ``x-api-key``
        (Anthropic) or ``?api_key=``, whichever is there; empty ones do not count. Raises
        ``Unauthenticated``."""
        if not self._required:
            return ANONYMOUS
        scheme, _, token = (authorization or "").partition(" ")
        bearer = token if scheme.lower() == "bearer" else ""
        presented = {text.strip() for text in (bearer, api_key or "", query_key or "")} - {""}
        if not presented:
            raise Unauthenticated(
                "An API key is required: 'Authorization: Bearer KEY' or 'x-api-key: KEY'."
            )
        if len(presented) > 1:
            raise Unauthenticated("The request carries two different API keys; send one.")
        return self._caller(presented.pop())

    def refresh(self) -> None:
        """Read the keys if they have changed. Blocks; raises ``Unavailable``."""
        # In this order: a key that changes in between is read now, and again next time.
        revision = self._store.revision()
        if revision == self._revision:
            return
        known = [_known(credential) for credential in self._store.credentials()]
        known += self._static
        self._known = {each.digest: each for each in known}
        self._required = self._required or bool(known)
        self._revision = revision

    async def keep_fresh(self) -> None:
        """Follow the store for as long as this task lives."""
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            try:
                await asyncio.to_thread(self.refresh)
            except Exception as error:
                # Whatever it is: a server that stops asking would never hear of a revocation.
                if not self._stale:
                    reason = for_log(error)
                    log.error("keys cannot be read, the last known stay valid: %s", reason)
                self._stale = True
            else:
                if self._stale:
                    log.warning("keys are read again")
                self._stale = False

    def _caller(self, presented: str) -> Caller:
        # The time of the look-up depends on the digest of what was sent. Nobody can choose
        # that to creep up on a digest that is known, let alone on the key behind it; the
        # comparison of all 32 bytes, which a dict may cut short, is in constant time.
        sent = digest(presented)
        known = self._known.get(sent)
        if known is None or not hmac.compare_digest(sent, known.digest):
            raise Unauthenticated("The API key is not valid.")
        # To say more is safe: only somebody who has the whole key gets this far.
        if known.revoked:
            raise Unauthenticated("The API key has been revoked.")
        if known.until <= self._clock():
            raise Unauthenticated("The API key has expired.")
        return known.caller


def _known(credential: Credential) -> _Known:
    key = credential.key
    ends = (end for end in (credential.valid_until, key.expires_at) if end is not None)
    until = min(ends, default=math.inf)
    return _Known(credential.digest, key.caller, until, key.revoked_at is not None)
