"""What is in the tables, put there and read without the store.

A row is compared as a whole: every column and ``xmin``, so that "nothing was written" means just that.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.pool import NullPool

from tests.patience import PATIENCE

FLOW = UUID("6f0c5c5e-0000-4000-8000-000000000001")
OTHER_FLOW = UUID("6f0c5c5e-0000-4000-8000-000000000002")

# The states that a run can be in, as an INSERT sees them. None of them came out of the store.
STATES: dict[str, dict[str, str]] = {
    "active": {"timeout_at_utc": "now() + interval '1 hour'"},
    "disarmed": {},
    "overdue": {"timeout_at_utc": "now() - interval '1 minute'"},
    "cancelled": {
        "timeout_at_utc": "now() + interval '1 hour'",
        "cancel_requested": "true",
        "cancel_reason": "'by a user'",
        "cancel_requested_at_utc": "now() - interval '2 minutes'",
    },
    "timed_out": {
        "timeout_at_utc": "now() - interval '1 minute'",
        "cancel_requested": "true",
        "cancel_reason": "'Run exceeded its timeout deadline.'",
        "cancel_requested_at_utc": "now() - interval '30 seconds'",
        "timed_out_at_utc": "now() - interval '30 seconds'",
    },
    "timed_out_after_cancel": {
        "timeout_at_utc": "now() - interval '1 minute'",
        "cancel_requested": "true",
        "cancel_reason": "'by a user'",
        "cancel_requested_at_utc": "now() - interval '2 minutes'",
        "timed_out_at_utc": "now() - interval '30 seconds'",
    },
    "completed": {
        "timeout_at_utc": "now() + interval '1 hour'",
        "completed_at_utc": "now() - interval '1 minute'",
    },
    "completed_after_cancel": {
        "timeout_at_utc": "now() + interval '1 hour'",
        "cancel_requested": "true",
        "cancel_reason": "'by a user'",
        "cancel_requested_at_utc": "now() - interval '2 minutes'",
        "completed_at_utc": "now() - interval '1 minute'",
    },
}


class Rows:
    """The tables of one schema, seen from a session in UTC."""

    def __init__(self, url: str, schema: str = "public") -> None:
        options = f"-c timezone=UTC -c search_path={schema}"
        self.engine: Engine = create_engine(
            url, connect_args={"options": options}, isolation_level="AUTOCOMMIT", poolclass=NullPool
        )
        self._kept: Connection = self.engine.connect()

    def close(self) -> None:
        """Close the session."""
        self._kept.close()
        self.engine.dispose()

    def sql(self, statement: str, **parameters: Any) -> list[tuple[Any, ...]]:
        """Run a statement and commit it."""
        result = self._kept.execute(text(statement), parameters)
        return [tuple(row) for row in result] if result.returns_rows else []

    def insert(self, state: str = "active", **columns: str) -> UUID:
        """A run in one of the `STATES`, with columns given as SQL on top; the state "unknown" inserts nothing."""
        run_id = uuid4()
        if state != "unknown":
            values = {"run_id": f"'{run_id}'", "flow_id": f"'{FLOW}'", "trigger_key": "'Trigger'"}
            values |= STATES[state] | columns
            self.sql(f"INSERT INTO flow_run_controls ({', '.join(values)}) VALUES ({', '.join(values.values())})")
        return run_id

    def insert_key(
        self, run_id: UUID, key: str, trigger_key: str = "trigger", *, flow: UUID = FLOW, created: str = "now()"
    ) -> None:
        """A key in its normal form, registered for a run."""
        self.sql(
            "INSERT INTO flow_idempotency_keys (flow_id, trigger_key, idempotency_key, run_id, created_at_utc) "
            f"VALUES (:flow, :trigger, :key, :run, {created})",
            flow=flow,
            trigger=trigger_key,
            key=key,
            run=run_id,
        )

    def row(self, run_id: UUID) -> dict[str, Any] | None:
        """The whole row, times as text, with its ``xmin``."""
        found = self.sql(
            "SELECT to_jsonb(c) || jsonb_build_object('xmin', xmin::text) FROM flow_run_controls c WHERE run_id = :run",
            run=run_id,
        )
        return dict(found[0][0]) if found else None

    def changed(self, before: dict[str, Any] | None, run_id: UUID) -> set[str]:
        """The columns that differ now; ``{"xmin"}`` for a row that was written as it was, empty for one left alone."""
        after = self.row(run_id) or {}
        before = before or {}
        names = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
        return names - {"xmin"} if names != {"xmin"} else names

    def keys_of(self, run_id: UUID) -> list[tuple[str, str]]:
        """The keys that point to a run: trigger key and idempotency key."""
        found = self.sql(
            "SELECT trigger_key, idempotency_key FROM flow_idempotency_keys WHERE run_id = :run ORDER BY 1, 2",
            run=run_id,
        )
        return [(str(trigger), str(key)) for trigger, key in found]

    def everything(self) -> tuple[Any, ...]:
        """A fingerprint of both tables with every ``xmin``."""
        return self.sql(
            "SELECT (SELECT md5(string_agg(c::text || xmin::text, '|' ORDER BY run_id)) FROM flow_run_controls c), "
            "(SELECT md5(string_agg(k::text || xmin::text, '|' ORDER BY k::text)) FROM flow_idempotency_keys k)"
        )[0]

    @contextmanager
    def held(self, statement: str, **parameters: Any) -> Iterator[Connection]:
        """Another session that has run a statement and not committed it; rolled back unless the test commits."""
        with self.engine.connect() as plain:
            connection = plain.execution_options(isolation_level="READ COMMITTED")
            connection.execute(text(statement), parameters)
            yield connection
            connection.rollback()

    def wait_until_blocked(self, sessions: int = 1) -> None:
        """Return as soon as so many sessions of this database wait for a lock."""
        give_up = time.monotonic() + PATIENCE
        waiting = 0
        while waiting < sessions:
            assert time.monotonic() < give_up, f"{waiting} of {sessions} sessions wait for a lock"
            time.sleep(0.002)
            waiting = self.sql(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )[0][0]
