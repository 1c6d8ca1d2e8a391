"""A witness in the database: a trigger that notes every mark together with the row version that it replaced.

The trigger sees the version that was current when the row was locked, whatever the statement's snapshot
showed, so its notes tell whether a mark was due. It belongs to tests alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg
from sqlalchemy import Engine

_INSTALL = """
CREATE TABLE mark_audit (
    number bigint GENERATED ALWAYS AS IDENTITY, run_id uuid, deadline timestamptz, latched boolean,
    marked_at timestamptz, statement_at timestamptz, transaction xid8, written_by_claim boolean
);
CREATE FUNCTION note_mark() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO mark_audit (run_id, deadline, latched, marked_at, statement_at, transaction, written_by_claim)
    VALUES (OLD.run_id, OLD.timeout_at_utc,
        OLD.timed_out_at_utc IS NOT NULL OR OLD.completed_at_utc IS NOT NULL OR OLD.cancel_requested,
        NEW.timed_out_at_utc, now(), pg_current_xact_id(),
        NEW.cancel_reason = 'Run exceeded its timeout deadline.');
    RETURN NULL;
END $$;
CREATE TRIGGER note_mark AFTER UPDATE ON flow_run_controls FOR EACH ROW
    WHEN (NEW.timed_out_at_utc IS NOT NULL AND OLD.timed_out_at_utc IS DISTINCT FROM NEW.timed_out_at_utc)
    EXECUTE FUNCTION note_mark();
"""


@dataclass(frozen=True)
class Findings:
    """What the trigger noted: all marks, and those that broke a promise."""

    marks: int
    runs: int
    early: int
    on_latched_runs: int
    twice_for_one_arming: int
    largest_statement: int

    @property
    def broken_promises(self) -> int:
        """How many marks should not have been."""
        return self.early + self.on_latched_runs + self.twice_for_one_arming


def install(engine: Engine) -> None:
    """Put the witness on a database of a test's own."""
    with engine.begin() as conn:
        conn.exec_driver_sql(_INSTALL)


def findings(conninfo: str) -> Findings:
    """Judge everything that has been noted so far."""
    with psycopg.connect(conninfo) as conn:

        def one(sql: str) -> Any:
            return conn.execute(sql).fetchall()[0][0]

        return Findings(
            marks=one("SELECT count(*) FROM mark_audit"),
            runs=one("SELECT count(DISTINCT run_id) FROM mark_audit"),
            early=one("SELECT count(*) FROM mark_audit WHERE deadline IS NULL OR deadline > statement_at"),
            on_latched_runs=one("SELECT count(*) FROM mark_audit WHERE latched"),
            # The tests here give every arming of a run a deadline of its own.
            twice_for_one_arming=one(
                "SELECT count(*) FROM (SELECT 1 FROM mark_audit GROUP BY run_id, deadline HAVING count(*) > 1) m"
            ),
            largest_statement=one(
                "SELECT coalesce(max(n), 0) FROM (SELECT count(*) AS n FROM mark_audit GROUP BY transaction) t"
            ),
        )
