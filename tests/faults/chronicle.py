"""What changed in the tables: a trigger writes down each change, in the transaction that makes it.

So the chronicle is lost or kept with the change, and its order within a run is that of the commits, since the
trigger runs while the row is locked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal
from uuid import UUID

import psycopg
from sqlalchemy import Connection

__all__ = ["INFINITE", "Change", "KeyChange", "Row", "changes", "final_keys", "final_rows", "install", "key_changes"]

INFINITE: Final = 1 << 62
"""Stands for ``infinity``, its negative for ``-infinity``."""

_INSTALL: Final = """
CREATE SCHEMA lab;
GRANT USAGE ON SCHEMA lab TO PUBLIC;
CREATE TABLE lab.change (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run_id uuid NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    statement_at timestamptz NOT NULL DEFAULT statement_timestamp(),
    xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    session text NOT NULL DEFAULT current_setting('application_name'),
    call bigint DEFAULT substring(current_query() FROM '/[*] call ([0-9]+) [*]/')::bigint,
    operation text NOT NULL,
    old public.flow_run_controls,
    new public.flow_run_controls
);
CREATE TABLE lab.key_change (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run_id uuid NOT NULL,
    key text NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    call bigint DEFAULT substring(current_query() FROM '/[*] call ([0-9]+) [*]/')::bigint,
    operation text NOT NULL
);
CREATE FUNCTION lab.record_change() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    INSERT INTO lab.change (run_id, operation, old, new)
    VALUES (coalesce(NEW.run_id, OLD.run_id), TG_OP,
            CASE WHEN TG_OP <> 'INSERT' THEN OLD END, CASE WHEN TG_OP <> 'DELETE' THEN NEW END);
    RETURN NULL;
END $$;
CREATE FUNCTION lab.record_key() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    key record;
BEGIN
    IF TG_OP = 'DELETE' THEN key := OLD; ELSE key := NEW; END IF;
    INSERT INTO lab.key_change (run_id, key, operation)
    VALUES (key.run_id, key.flow_id || '/' || key.trigger_key || '/' || key.idempotency_key, TG_OP);
    RETURN NULL;
END $$;
CREATE TRIGGER lab_record AFTER INSERT OR UPDATE OR DELETE ON public.flow_run_controls
    FOR EACH ROW EXECUTE FUNCTION lab.record_change();
CREATE TRIGGER lab_record AFTER INSERT OR UPDATE OR DELETE ON public.flow_idempotency_keys
    FOR EACH ROW EXECUTE FUNCTION lab.record_key();
"""


@dataclass(frozen=True)
class Row:
    """A control row; times in microseconds since 1970, endless ones as `INFINITE`."""

    flow_id: UUID
    trigger_key: str
    idempotency_key: str | None
    timeout_at: int | None
    cancel_requested: bool
    cancel_reason: str | None
    cancel_requested_at: int | None
    timed_out_at: int | None
    created_at: int | None
    completed_at: int | None

    @property
    def armed(self) -> bool:
        """Whether it has a deadline and no latch."""
        latched = self.timed_out_at is not None or self.completed_at is not None or self.cancel_requested
        return self.timeout_at is not None and not latched


@dataclass(frozen=True)
class Change:
    """One committed change of a control row; *at* is the server's clock while the row was locked for it.

    *committed* is when everybody could see it, where the server knows.
    """

    number: int
    run_id: UUID
    at: int
    statement_at: int
    xid: int
    session: str
    call: int | None
    operation: Literal["INSERT", "UPDATE", "DELETE"]
    old: Row | None
    new: Row | None
    committed: int | None = None

    @property
    def is_mark(self) -> bool:
        """Whether it set the stamp of a timeout where none was."""
        before = None if self.old is None else self.old.timed_out_at
        return before is None and self.new is not None and self.new.timed_out_at is not None

    @property
    def by_daemon(self) -> bool:
        """Whether a daemon made it."""
        return self.session.startswith("curfewd ")


@dataclass(frozen=True)
class KeyChange:
    """One committed change of an idempotency key: flow, trigger key and key as one text."""

    number: int
    run_id: UUID
    key: str
    at: int
    call: int | None
    operation: Literal["INSERT", "UPDATE", "DELETE"]


def install(conn: Connection) -> None:
    """Create the chronicle in the caller's transaction, as a superuser; the tables are those of ``public``."""
    conn.exec_driver_sql(_INSTALL)


def _us(expression: str) -> str:
    return (
        f"CASE WHEN {expression} = 'infinity' THEN {INFINITE} WHEN {expression} = '-infinity' THEN {-INFINITE}"
        f" ELSE (extract(epoch FROM {expression}) * 1000000)::bigint END"
    )


def _columns(row: str) -> str:
    plain = [f"({row}).{name}" for name in ("flow_id", "trigger_key", "idempotency_key")]
    cancel = [f"({row}).cancel_requested", f"({row}).cancel_reason", _us(f"({row}).cancel_requested_at_utc")]
    rest = [_us(f"({row}).{name}_utc") for name in ("timed_out_at", "created_at", "completed_at")]
    return ", ".join([*plain, _us(f"({row}).timeout_at_utc"), *cancel, *rest])


def _row(values: tuple[Any, ...]) -> Row | None:
    # A row that is not there has no trigger key.
    return None if values[1] is None else Row(*values)


def changes(conn: psycopg.Connection[Any]) -> list[Change]:
    """Every committed change in the order in which the trigger saw them."""
    head = f"number, run_id, {_us('at')}, {_us('statement_at')}, xid::text::bigint, session, call, operation"
    committed = _us("pg_xact_commit_timestamp(xid::xid)")
    cursor = conn.execute(
        f"SELECT {head}, {_columns('old')}, {_columns('new')}, {committed} FROM lab.change ORDER BY number"
    )
    found = []
    for row in cursor:
        number, run_id, at, statement_at, xid, session, call, operation = row[:8]
        old, new = _row(row[8:18]), _row(row[18:28])
        found.append(Change(number, run_id, at, statement_at, xid, session, call, operation, old, new, row[28]))
    return found


def key_changes(conn: psycopg.Connection[Any]) -> list[KeyChange]:
    """Every committed change of a key."""
    statement = f"SELECT number, run_id, key, {_us('at')}, call, operation FROM lab.key_change ORDER BY number"
    return [KeyChange(*row) for row in conn.execute(statement)]


def final_rows(conn: psycopg.Connection[Any]) -> dict[UUID, Row]:
    """The control rows as they are now."""
    cursor = conn.execute(f"SELECT run_id, {_columns('control')} FROM flow_run_controls AS control")
    return {row[0]: Row(*row[1:]) for row in cursor}


def final_keys(conn: psycopg.Connection[Any]) -> dict[str, UUID]:
    """The keys as they are now, in the form of `KeyChange.key`, with their runs."""
    statement = "SELECT flow_id || '/' || trigger_key || '/' || idempotency_key, run_id FROM flow_idempotency_keys"
    return dict(conn.execute(statement).fetchall())
