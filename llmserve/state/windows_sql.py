"""The rate windows in PostgreSQL: one row per caller, one per request under way, and the
functions that decide.

A decision is one call. It locks the caller's row first, so that decisions about one
caller happen one after the other, whichever replica asks; all times are the database's.
``synchronous_commit`` is off for them: after a crash of the server some tenths of a
second of windows are lost, which refill anyway.
"""

from __future__ import annotations

_TABLES = (
    """CREATE TABLE llmserve_windows (
        key_id text PRIMARY KEY,
        at double precision NOT NULL DEFAULT 0,
        requests_used double precision NOT NULL DEFAULT 0,
        tokens_used double precision NOT NULL DEFAULT 0,
        day text NOT NULL DEFAULT '',
        day_used bigint NOT NULL DEFAULT 0)""",
    """CREATE TABLE llmserve_leases (
        id text PRIMARY KEY,
        key_id text NOT NULL,
        day text NOT NULL,
        tokens bigint NOT NULL,
        expires_at double precision NOT NULL)""",
    "CREATE INDEX llmserve_leases_by_key ON llmserve_leases (key_id)",
)

# The caller's row, locked, with everything in it brought to this moment.
_CURRENT = """
CREATE FUNCTION llmserve_current(the_key text, per_minute_requests bigint,
    per_minute_tokens bigint) RETURNS llmserve_windows LANGUAGE plpgsql AS $$
DECLARE
    w llmserve_windows;
    now_at double precision;
    today text;
    passed double precision;
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    INSERT INTO llmserve_windows (key_id) VALUES (the_key) ON CONFLICT DO NOTHING;
    SELECT * INTO w FROM llmserve_windows WHERE key_id = the_key FOR UPDATE;
    now_at := extract(epoch FROM clock_timestamp());
    today := to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD');
    passed := greatest(0, now_at - w.at);
    w.requests_used := greatest(
        0, w.requests_used - passed * coalesce(per_minute_requests, 0) / 60.0);
    w.tokens_used := greatest(0, w.tokens_used - passed * coalesce(per_minute_tokens, 0) / 60.0);
    IF w.day <> today THEN
        w.day := today;
        w.day_used := 0;
    END IF;
    w.at := now_at;
    RETURN w;
END $$"""

_SAVE = """
CREATE FUNCTION llmserve_save(w llmserve_windows) RETURNS void LANGUAGE sql AS $$
    UPDATE llmserve_windows SET at = w.at, requests_used = w.requests_used,
        tokens_used = w.tokens_used, day = w.day, day_used = w.day_used
    WHERE key_id = w.key_id
$$"""

# The rule of windows_memory.MemoryWindows.take, in the same order.
_TAKE = """
CREATE OR REPLACE FUNCTION llmserve_take(the_key text, the_lease text, per_minute_requests bigint,
    per_minute_tokens bigint, most_running bigint, per_day bigint, estimate bigint,
    lease_seconds double precision,
    OUT refused text, OUT day text, OUT requests_used double precision,
    OUT tokens_used double precision, OUT day_used bigint) LANGUAGE plpgsql AS $$
DECLARE
    w llmserve_windows := llmserve_current(the_key, per_minute_requests, per_minute_tokens);
    running bigint;
    reserved bigint;
    of_minute bigint := least(estimate, per_minute_tokens);
    of_day bigint := estimate;
BEGIN
    SELECT count(*), coalesce(sum(l.tokens) FILTER (WHERE l.day = w.day), 0)
        INTO running, reserved
        FROM llmserve_leases l WHERE l.key_id = the_key AND l.expires_at > w.at;
    refused := CASE
        WHEN w.requests_used + 1 > per_minute_requests THEN 'requests_per_minute'
        WHEN w.tokens_used + of_minute > per_minute_tokens THEN 'tokens_per_minute'
        WHEN running >= most_running THEN 'concurrency'
        WHEN w.day_used + of_day > per_day THEN 'tokens_per_day'
        WHEN w.day_used + reserved + of_day > per_day THEN 'reserved'
    END;
    IF refused IS NULL THEN
        w.requests_used := w.requests_used + 1;
        w.tokens_used := w.tokens_used + coalesce(of_minute, 0);
        PERFORM llmserve_save(w);
        INSERT INTO llmserve_leases
            VALUES (the_lease, the_key, w.day, coalesce(of_day, 0), w.at + lease_seconds);
    END IF;
    day := w.day;
    requests_used := w.requests_used;
    tokens_used := w.tokens_used;
    day_used := w.day_used;
END $$"""

# Nothing is charged unless the lease is there: so it may be called twice, or for a take
# of which nobody knows whether it was granted.
_SETTLE = """
CREATE FUNCTION llmserve_settle(the_key text, the_lease text, per_minute_requests bigint,
    per_minute_tokens bigint, estimate bigint, actual bigint)
    RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    w llmserve_windows := llmserve_current(the_key, per_minute_requests, per_minute_tokens);
BEGIN
    DELETE FROM llmserve_leases WHERE id = the_lease;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    w.tokens_used := greatest(
        0, w.tokens_used + actual - least(estimate, coalesce(per_minute_tokens, estimate)));
    w.day_used := w.day_used + actual;
    PERFORM llmserve_save(w);
END $$"""

# A lease that ran out counts no more, and is kept for a while: when PostgreSQL was away,
# its request is still to be charged. SKIP LOCKED: whoever holds one settles it just now.
_RENEW = """
CREATE FUNCTION llmserve_renew(leases text[], lease_seconds double precision)
    RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    now_at double precision := extract(epoch FROM clock_timestamp());
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    UPDATE llmserve_leases SET expires_at = now_at + lease_seconds WHERE id IN (
        SELECT id FROM llmserve_leases WHERE id = ANY (leases) FOR UPDATE SKIP LOCKED);
    DELETE FROM llmserve_leases WHERE id IN (
        SELECT id FROM llmserve_leases WHERE expires_at <= now_at - 20 * lease_seconds
        FOR UPDATE SKIP LOCKED);
END $$"""

# Settle, after so many requests went back into the bucket: one for a request that was
# refused after all. A function of its own, so that older replicas go on with the other.
_END = """
CREATE FUNCTION llmserve_end(the_key text, the_lease text, per_minute_requests bigint,
    per_minute_tokens bigint, estimate bigint, actual bigint, returned bigint)
    RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    w llmserve_windows := llmserve_current(the_key, per_minute_requests, per_minute_tokens);
BEGIN
    IF returned > 0 AND EXISTS (SELECT FROM llmserve_leases WHERE id = the_lease) THEN
        w.requests_used := greatest(0, w.requests_used - returned);
        PERFORM llmserve_save(w);
    END IF;
    PERFORM llmserve_settle(
        the_key, the_lease, per_minute_requests, per_minute_tokens, estimate, actual);
END $$"""

WINDOW_MIGRATIONS = ((*_TABLES, _CURRENT, _SAVE, _TAKE, _SETTLE, _RENEW), (_TAKE, _END))
"""For each version of the schema, what only PostgreSQL has. The second one brings a rule of
``llmserve_take`` that is stricter about the day."""
