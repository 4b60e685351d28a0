"""What outlives a request: keys, usage, and how much of its limits each caller has used.

open_store(settings, default_path)   -> Store       keys and usage, SQLite or PostgreSQL
open_windows(settings, store)        -> Windows     rate windows, in memory or shared
Authenticator(store, static_keys)                   who is calling
UsageWriter(store)                                  usage, in batches, off the event loop
ratelimit_headers(grant)                            ``x-ratelimit-*``
"""

from __future__ import annotations

from llmserve.state.authenticator import Authenticator
from llmserve.state.factory import open_store, open_windows
from llmserve.state.protocol import ApiKey, BatchId, Credential, Store, UsageRow
from llmserve.state.usage import UsageWriter
from llmserve.state.windows import (
    BudgetSpent,
    Grant,
    Level,
    LimitReached,
    Standing,
    Windows,
    ratelimit_headers,
)

__all__ = [
    "ApiKey",
    "Authenticator",
    "BatchId",
    "BudgetSpent",
    "Credential",
    "Grant",
    "Level",
    "LimitReached",
    "Standing",
    "Store",
    "UsageRow",
    "UsageWriter",
    "Windows",
    "open_store",
    "open_windows",
    "ratelimit_headers",
]
