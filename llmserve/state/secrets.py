"""How keys are made, and what is kept of them."""

from __future__ import annotations

import hashlib
import secrets

_PREFIX = "sk-llmserve-"
_SHOWN_CHARS = 6


def new_key() -> str:
    """A key: 32 random bytes behind a prefix that secret scanners can look for."""
    return _PREFIX + secrets.token_urlsafe(32)


def new_key_id() -> str:
    """What a key is called in accounts and logs; it has nothing to do with the secret."""
    return f"key-{secrets.token_hex(6)}"


def digest(key: str) -> bytes:
    """What is kept of a key: its SHA-256.

    A slow, salted hash protects what people think up, because such words can be guessed.
    These keys are 256 random bits: nobody finds one by trying, salted or not, and a slow
    hash for each request would only help those who want to keep the server busy.
    """
    return hashlib.sha256(key.encode(errors="surrogatepass")).digest()


def shown_prefix(key: str) -> str:
    """The beginning of a key, for lists: enough to recognise it, useless without the
    200 bits and more that follow."""
    return key[: len(_PREFIX) + _SHOWN_CHARS]
