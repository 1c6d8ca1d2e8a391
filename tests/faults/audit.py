"""The judge of a proof: what happened to every run, told by triggers and snapshots rather than by daemons.

`install` puts an audit beside the tables of a database that belongs to the proof. `expect` says which runs are
to be marked at which deadline, `snapshot` takes down all others, and `judge` compares what is there with both.
The audit's rows are written by a trigger in the transaction of the change, so they are lost or kept with it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import ARRAY, Connection, DateTime, Uuid, bindparam, text

from curfew_store.enforcement import OVERDUE_REASON

_INSTALL = """
CREATE SCHEMA proof;
CREATE TABLE proof.expected (run_id uuid PRIMARY KEY, deadline timestamptz NOT NULL);
CREATE TABLE proof.bystander (run_id uuid PRIMARY KEY, version text NOT NULL, content text NOT NULL);
CREATE TABLE proof.change (
    run_id uuid NOT NULL,
    operation text NOT NULL,
    deadline timestamptz,
    old_stamp timestamptz,
    new_stamp timestamptz,
    seen_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    session text NOT NULL DEFAULT current_setting('application_name')
);
CREATE FUNCTION proof.record_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO proof.change (run_id, operation, deadline, old_stamp, new_stamp)
    VALUES (OLD.run_id, TG_OP, OLD.timeout_at_utc, OLD.timed_out_at_utc,
            CASE TG_OP WHEN 'UPDATE' THEN NEW.timed_out_at_utc END);
    RETURN NULL;
END $$;
CREATE TRIGGER record_change AFTER UPDATE OR DELETE ON flow_run_controls
    FOR EACH ROW EXECUTE FUNCTION proof.record_change();
"""

_EXPECT = text(
    "INSERT INTO proof.expected SELECT * FROM unnest(:run_ids, :deadlines) ON CONFLICT DO NOTHING"
).bindparams(bindparam("run_ids", type_=ARRAY(Uuid())), bindparam("deadlines", type_=ARRAY(DateTime(timezone=True))))

_SNAPSHOT = """
INSERT INTO proof.bystander
SELECT run_id, xmin::text, control::text FROM flow_run_controls AS control
WHERE run_id NOT IN (SELECT run_id FROM proof.expected)
"""

# A mark is a change of the stamp: from none to one, but also to another or back to none. The columns are
# those of `Verdict`, in its order.
_JUDGE = """
WITH stamped AS (
    SELECT run_id, count(*) AS times FROM proof.change
    WHERE operation = 'UPDATE' AND old_stamp IS DISTINCT FROM new_stamp GROUP BY run_id
), outcome AS (
    SELECT expected.deadline, stamped.times, control.*
    FROM proof.expected
    LEFT JOIN stamped ON stamped.run_id = expected.run_id
    LEFT JOIN flow_run_controls AS control ON control.run_id = expected.run_id
)
SELECT
    (SELECT count(*) FROM outcome) AS expected,
    (SELECT count(*) FROM proof.bystander) AS bystanders,
    (SELECT count(*) FROM outcome WHERE timed_out_at_utc IS NOT NULL AND times IS NOT NULL) AS marked,
    (SELECT count(*) FROM stamped WHERE times > 1) AS twice,
    (SELECT count(DISTINCT run_id) FROM proof.change
     WHERE old_stamp IS NULL AND new_stamp IS NOT NULL
       AND (deadline IS NULL OR least(new_stamp, seen_at) < deadline)) AS early,
    (SELECT count(*) FROM outcome WHERE timed_out_at_utc IS NULL OR times IS NULL) AS missed,
    (SELECT count(*) FROM proof.bystander
     LEFT JOIN flow_run_controls AS control ON control.run_id = bystander.run_id
     WHERE control.run_id IS NULL
        OR (control.xmin::text, control::text) IS DISTINCT FROM (bystander.version, bystander.content)
        OR EXISTS (SELECT FROM proof.change WHERE change.run_id = bystander.run_id))
    + (SELECT count(*) FROM flow_run_controls AS control
       WHERE NOT EXISTS (SELECT FROM proof.expected WHERE expected.run_id = control.run_id)
         AND NOT EXISTS (SELECT FROM proof.bystander WHERE bystander.run_id = control.run_id)) AS touched,
    (SELECT count(*) FROM outcome
     WHERE timed_out_at_utc IS NOT NULL
       AND (timeout_at_utc, cancel_requested, cancel_reason, cancel_requested_at_utc, completed_at_utc)
           IS DISTINCT FROM (deadline, true, :reason, timed_out_at_utc, NULL::timestamptz)) AS wrong
"""


@dataclass(frozen=True)
class Verdict:
    """Counts of runs. Of the *expected* ones: *marked*, *missed* (also a run without an audited mark) and *wrong*
    (a field is not what a mark leaves). Of all: marked *twice* or taken back, and marked *early*. *touched*:
    *bystanders* with another content or xmin, deleted, or seen by the audit, and rows from nowhere."""

    expected: int
    bystanders: int
    marked: int
    twice: int
    early: int
    missed: int
    touched: int
    wrong: int

    @property
    def ok(self) -> bool:
        """Whether something was expected and all of it, and nothing else, came to pass."""
        faults = self.twice + self.early + self.missed + self.touched + self.wrong
        return faults == 0 and 0 < self.expected == self.marked

    def __str__(self) -> str:
        names = ("marked", "twice", "early", "missed", "touched", "wrong")
        return " ".join(f"{name}={getattr(self, name)}" for name in names)


def install(conn: Connection) -> None:
    """Create the audit, in the caller's transaction."""
    conn.exec_driver_sql(_INSTALL)


def expect(conn: Connection, runs: Iterable[tuple[UUID, datetime]]) -> None:
    """Say that these runs are to be marked once, not before these deadlines; may be repeated."""
    pairs = list(runs)
    conn.execute(_EXPECT, {"run_ids": [run for run, _ in pairs], "deadlines": [deadline for _, deadline in pairs]})


def snapshot(conn: Connection) -> None:
    """Take down content and xmin of every run that is not expected to be marked."""
    conn.exec_driver_sql(_SNAPSHOT)


def unmarked(conn: Connection) -> int:
    """How many expected runs have no mark yet."""
    statement = (
        "SELECT count(*) FROM proof.expected LEFT JOIN flow_run_controls USING (run_id) WHERE timed_out_at_utc IS NULL"
    )
    return int(conn.exec_driver_sql(statement).scalar_one())


def judge(conn: Connection) -> Verdict:
    """Compare what is there with what was expected; reads only."""
    return Verdict(*conn.execute(text(_JUDGE), {"reason": OVERDUE_REASON}).one())
