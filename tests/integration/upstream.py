"""FlowOrchestrator's side of a shared database, as SQL: its tables and the statements that it sends.

Written from what is known of its PostgreSQL store (releases 1.29 to 1.32): each call takes a connection of
its own and sends one autocommitted statement, keys are normalised by the client, and at every start one
batch makes whatever is missing. Only the tables that meet ours are here.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import TupleRow

STARTUP_BATCH = """
CREATE TABLE IF NOT EXISTS flow_runs (
    id UUID PRIMARY KEY,
    flow_id UUID NOT NULL,
    flow_name VARCHAR(256),
    status VARCHAR(64) NOT NULL,
    trigger_key VARCHAR(256),
    trigger_data_json TEXT,
    background_job_id VARCHAR(128),
    started_at TIMESTAMPTZ NOT NULL DEFAULT NOW(),
    completed_at TIMESTAMPTZ
);
ALTER TABLE flow_runs ADD COLUMN IF NOT EXISTS source_run_id UUID NULL;
CREATE INDEX IF NOT EXISTS ix_flow_runs_flow_id ON flow_runs (flow_id);
CREATE INDEX IF NOT EXISTS ix_flow_runs_status ON flow_runs (status);
CREATE INDEX IF NOT EXISTS ix_flow_runs_started_at ON flow_runs (started_at DESC);
CREATE TABLE IF NOT EXISTS flow_run_controls (
    run_id UUID PRIMARY KEY,
    flow_id UUID NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',
    trigger_key VARCHAR(256) NOT NULL DEFAULT '',
    idempotency_key VARCHAR(256),
    timeout_at_utc TIMESTAMPTZ,
    cancel_requested BOOLEAN NOT NULL DEFAULT FALSE,
    cancel_reason TEXT,
    cancel_requested_at_utc TIMESTAMPTZ,
    timed_out_at_utc TIMESTAMPTZ
);
CREATE TABLE IF NOT EXISTS flow_idempotency_keys (
    flow_id UUID NOT NULL,
    trigger_key VARCHAR(256) NOT NULL,
    idempotency_key VARCHAR(256) NOT NULL,
    run_id UUID NOT NULL,
    created_at_utc TIMESTAMPTZ NOT NULL DEFAULT NOW(),
    PRIMARY KEY (flow_id, trigger_key, idempotency_key)
);
CREATE INDEX IF NOT EXISTS ix_flow_idempotency_keys_run_id ON flow_idempotency_keys (run_id);
"""

CONFIGURE = """
INSERT INTO flow_run_controls (run_id, flow_id, trigger_key, idempotency_key, timeout_at_utc)
VALUES (%(run_id)s, %(flow_id)s, %(trigger_key)s, %(idempotency_key)s, %(timeout_at_utc)s)
ON CONFLICT (run_id) DO UPDATE SET flow_id = excluded.flow_id, trigger_key = excluded.trigger_key,
    idempotency_key = excluded.idempotency_key, timeout_at_utc = excluded.timeout_at_utc
"""

REQUEST_CANCEL = """
UPDATE flow_run_controls SET cancel_requested = TRUE, cancel_reason = %(reason)s,
    cancel_requested_at_utc = COALESCE(cancel_requested_at_utc, NOW())
WHERE run_id = %(run_id)s AND cancel_requested = FALSE
"""

MARK_TIMED_OUT = """
UPDATE flow_run_controls SET timed_out_at_utc = NOW(), cancel_requested = TRUE,
    cancel_reason = COALESCE(%(reason)s, cancel_reason, 'Run timed out.'),
    cancel_requested_at_utc = COALESCE(cancel_requested_at_utc, NOW())
WHERE run_id = %(run_id)s AND timed_out_at_utc IS NULL
"""

EXTEND = """
UPDATE flow_run_controls SET timeout_at_utc = %(timeout_at_utc)s,
    cancel_requested = CASE WHEN timed_out_at_utc IS NULL THEN cancel_requested ELSE FALSE END,
    cancel_reason = CASE WHEN timed_out_at_utc IS NULL THEN cancel_reason END,
    cancel_requested_at_utc = CASE WHEN timed_out_at_utc IS NULL THEN cancel_requested_at_utc END,
    timed_out_at_utc = NULL
WHERE run_id = %(run_id)s
"""

GET = """
SELECT run_id, flow_id, trigger_key, idempotency_key, timeout_at_utc, cancel_requested, cancel_reason,
    cancel_requested_at_utc, timed_out_at_utc
FROM flow_run_controls WHERE run_id = %(run_id)s
"""

REGISTER_KEY = """
INSERT INTO flow_idempotency_keys (flow_id, trigger_key, idempotency_key, run_id)
VALUES (%(flow_id)s, %(trigger_key)s, %(idempotency_key)s, %(run_id)s) ON CONFLICT DO NOTHING
"""

FIND_KEY = """
SELECT run_id FROM flow_idempotency_keys
WHERE flow_id = %(flow_id)s AND trigger_key = %(trigger_key)s AND idempotency_key = %(idempotency_key)s
"""

START_RUN = """
INSERT INTO flow_runs (id, flow_id, flow_name, status, trigger_key) VALUES
    (%(run_id)s, %(flow_id)s, 'orders', 'Running', %(trigger_key)s)
"""

FINISH_RUN = """
UPDATE flow_runs SET status = 'Succeeded', completed_at = %(completed_at)s
WHERE id = %(run_id)s AND status = 'Running'
"""

CLEANUP = [
    f"DELETE FROM {table} USING flow_runs WHERE {table}.run_id = flow_runs.id AND flow_runs.completed_at < %(cutoff)s"
    for table in ("flow_run_controls", "flow_idempotency_keys")
] + ["DELETE FROM flow_runs WHERE completed_at < %(cutoff)s"]

COLUMNS = (
    "run_id",
    "flow_id",
    "trigger_key",
    "idempotency_key",
    "timeout_at_utc",
    "cancel_requested",
    "cancel_reason",
    "cancel_requested_at_utc",
    "timed_out_at_utc",
)
"""The columns that upstream reads, in the order of `GET`."""


def _normal(key: str) -> str:
    """A key as upstream's client stores it; callers here use ASCII, where the languages agree."""
    return key.strip().lower()


class DotNetService:
    """A .NET service on the database: one connection and one autocommitted statement per call."""

    def __init__(self, conninfo: str) -> None:
        self._conninfo = conninfo

    def start_host(self) -> None:
        """Send the batch with which every host starts."""
        with psycopg.connect(self._conninfo, autocommit=True) as conn:
            conn.execute(STARTUP_BATCH)

    def configure(
        self, run_id: UUID, flow_id: UUID, trigger_key: str, key: str | None, deadline: datetime | None
    ) -> None:
        """Write the control record."""
        self._send(
            CONFIGURE,
            run_id=run_id,
            flow_id=flow_id,
            trigger_key=trigger_key,
            idempotency_key=key,
            timeout_at_utc=deadline,
        )

    def request_cancel(self, run_id: UUID, reason: str | None) -> bool:
        """Latch the cancel flag."""
        return self._send(REQUEST_CANCEL, run_id=run_id, reason=reason) > 0

    def mark_timed_out(self, run_id: UUID, reason: str | None) -> bool:
        """Latch the timeout."""
        return self._send(MARK_TIMED_OUT, run_id=run_id, reason=reason) > 0

    def extend(self, run_id: UUID, deadline: datetime | None) -> bool:
        """Set another deadline and drop the timeout latch."""
        return self._send(EXTEND, run_id=run_id, timeout_at_utc=deadline) > 0

    def get(self, run_id: UUID) -> dict[str, Any] | None:
        """Read the control record."""
        row = self._ask(GET, run_id=run_id)
        return None if row is None else dict(zip(COLUMNS, row, strict=True))

    def register(self, flow_id: UUID, trigger_key: str, key: str, run_id: UUID) -> bool:
        """Insert a key if it is absent."""
        parameters = {"trigger_key": _normal(trigger_key), "idempotency_key": _normal(key)}
        return self._send(REGISTER_KEY, flow_id=flow_id, run_id=run_id, **parameters) > 0

    def find(self, flow_id: UUID, trigger_key: str, key: str) -> UUID | None:
        """Look a key up."""
        parameters = {"trigger_key": _normal(trigger_key), "idempotency_key": _normal(key)}
        row = self._ask(FIND_KEY, flow_id=flow_id, **parameters)
        return None if row is None else row[0]

    def start_run(self, run_id: UUID, flow_id: UUID, trigger_key: str) -> None:
        """Write the run itself."""
        self._send(START_RUN, run_id=run_id, flow_id=flow_id, trigger_key=trigger_key)

    def finish_run(self, run_id: UUID, completed_at: datetime) -> bool:
        """Close the run; upstream touches no control record for that."""
        return self._send(FINISH_RUN, run_id=run_id, completed_at=completed_at) > 0

    def clean_up(self, cutoff: datetime) -> None:
        """Delete what belongs to runs completed before *cutoff*, in one transaction."""
        with psycopg.connect(self._conninfo) as conn:
            for statement in CLEANUP:
                conn.execute(statement, {"cutoff": cutoff})

    def _send(self, statement: str, **parameters: Any) -> int:
        with psycopg.connect(self._conninfo, autocommit=True) as conn:
            return conn.execute(statement, parameters).rowcount

    def _ask(self, statement: str, **parameters: Any) -> TupleRow | None:
        with psycopg.connect(self._conninfo, autocommit=True) as conn:
            return conn.execute(statement, parameters).fetchone()
