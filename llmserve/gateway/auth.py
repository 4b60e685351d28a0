"""Who is calling. With no keys configured, everybody is ``anonymous``."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from llmserve.errors import Unauthenticated
from llmserve.types import ANONYMOUS, Caller


class Keys:
    """Static API keys, compared by hash and in constant time: neither the time an answer
    takes nor the memory of the process gives a key away."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    @property
    def required(self) -> bool:
        return bool(self._digests)

    def authenticate(self, authorization: str | None, api_key: str | None) -> Caller:
        """The caller behind ``Authorization: Bearer …`` (OpenAI) or ``x-api-key``
        (Anthropic). Raises ``Unauthenticated``."""
        if not self._digests:
            return ANONYMOUS
        scheme, _, token = (authorization or "").partition(" ")
        presented = token.strip() if scheme.lower() == "bearer" else api_key
        if not presented:
            raise Unauthenticated(
                "An API key is required: 'Authorization: Bearer KEY' or 'x-api-key: KEY'."
            )
        digest = _digest(presented)
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        if not any(matches):
            raise Unauthenticated("The API key is not valid.")
        return Caller(name=f"key-{matches.index(True) + 1}")


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()
