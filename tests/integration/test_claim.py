"""The claim by one session: which runs it marks, in which order, and what it leaves alone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from sqlalchemy import Connection, create_engine
from sqlalchemy.pool import NullPool

from curfew_store import FlowRunControlStore
from curfew_store.enforcement import OVERDUE_REASON, claim_overdue, look_ahead
from curfew_store.records import ClaimedRun
from curfew_store.schema import tables_in
from tests.conftest import Database

TABLES = tables_in("public")
LAST = datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)


def _insert(database: Database, **columns: str) -> UUID:
    """A control record whose columns are the given SQL expressions."""
    run_id = uuid4()
    names, values = ", ".join(["run_id", *columns]), ", ".join([f"'{run_id}'", *columns.values()])
    with psycopg.connect(database.conninfo) as conn:
        conn.execute(f"INSERT INTO flow_run_controls ({names}) VALUES ({values})".encode())
    return run_id


def _rows(database: Database, *runs: UUID) -> list[tuple[Any, ...]]:
    with psycopg.connect(database.conninfo) as conn:
        sql = "SELECT xmin, ctid, c::text FROM flow_run_controls c WHERE run_id = ANY(%s) ORDER BY run_id"
        return conn.execute(sql, [list(runs)]).fetchall()


def _claim(database: Database, limit: int = 100, after: ClaimedRun | None = None) -> list[ClaimedRun]:
    """A claim as the daemon sends it: alone, in autocommit."""
    with database.engine.connect() as conn:
        return list(claim_overdue(_autocommit(conn), TABLES, limit=limit, after=after))


def _autocommit(conn: Connection) -> Connection:
    conn = conn.execution_options(isolation_level="AUTOCOMMIT")
    # A claim that waits where it should pass over fails instead of hanging.
    conn.exec_driver_sql("SET lock_timeout = '2s'")
    return conn


LEFT_ALONE = {
    "no deadline": {},
    "a future deadline": {"timeout_at_utc": "now() + interval '1 hour'"},
    "an infinite deadline": {"timeout_at_utc": "'infinity'"},
    "cancelled": {"timeout_at_utc": "now() - interval '1 hour'", "cancel_requested": "true"},
    "cancelled before time was kept": {"timeout_at_utc": "'-infinity'", "cancel_requested": "true"},
    "completed": {"timeout_at_utc": "now() - interval '1 hour'", "completed_at_utc": "now()"},
    "timed out": {
        "timeout_at_utc": "now() - interval '1 hour'",
        "timed_out_at_utc": "now()",
        "cancel_requested": "true",
    },
    "timed out without a flag": {"timeout_at_utc": "'-infinity'", "timed_out_at_utc": "now()"},
    "completed and timed out": {
        "timeout_at_utc": "now()",
        "timed_out_at_utc": "now()",
        "completed_at_utc": "now()",
    },
}


@pytest.mark.contract("E-2", "E-5", "E-8", "F-3")
def test_runs_in_every_other_state_are_not_even_written(database: Database) -> None:
    """A claim marks the due run alone; every other row keeps its version, its place and its content."""
    others = [_insert(database, **columns) for columns in LEFT_ALONE.values()]
    due = _insert(database, timeout_at_utc="now() - interval '1 second'")
    before = _rows(database, *others)
    assert [run.run_id for run in _claim(database)] == [due]
    assert _claim(database) == []
    assert _rows(database, *others) == before


@pytest.mark.contract("E-6", "E-10", "M-3", "M-4", "A-1")
def test_a_marked_run_shows_when_and_why(database: Database) -> None:
    """A mark stamps both columns with the claim's own moment, gives the reason and keeps everything else."""
    store = FlowRunControlStore(database.engine)
    flow, deadline = uuid4(), datetime.now(UTC) - timedelta(minutes=3)
    run = store.start_run(flow, "Trigger", "Key", timeout_at_utc=deadline).run_id
    before = store.get_run_control(run)
    (claimed,) = _claim(database)
    after = store.get_run_control(run)
    assert before is not None
    assert after is not None
    assert claimed == ClaimedRun(run, flow, deadline, claimed.timed_out_at)
    assert after.timed_out_at_utc == after.cancel_requested_at_utc == claimed.timed_out_at
    assert claimed.timed_out_at >= before.created_at_utc
    assert (after.cancel_requested, after.cancel_reason) == (True, OVERDUE_REASON)
    kept = "flow_id", "trigger_key", "idempotency_key", "timeout_at_utc", "created_at_utc", "completed_at_utc"
    assert [getattr(after, name) for name in kept] == [getattr(before, name) for name in kept]


@pytest.mark.contract("E-2", "E-8")
def test_a_deadline_equal_to_now_is_due_and_one_microsecond_later_is_not(database: Database) -> None:
    """By the claim's own clock the boundary belongs to the past."""
    now, later = uuid4(), uuid4()
    with database.engine.begin() as conn:
        # One transaction, so that the deadline and the claim have the same now().
        conn.exec_driver_sql(
            "INSERT INTO flow_run_controls (run_id, timeout_at_utc) "
            f"VALUES ('{now}', now()), ('{later}', now() + interval '1 microsecond')"
        )
        assert look_ahead(conn, TABLES).overdue
        assert [run.run_id for run in claim_overdue(conn, TABLES, limit=10)] == [now]
        ahead = look_ahead(conn, TABLES)
        assert ahead.next_due_in == pytest.approx(1e-6)
        assert not ahead.overdue


@pytest.mark.contract("F-3", "F-4", "E-2")
def test_odd_deadlines_of_others_are_marked_or_not_by_their_meaning(database: Database) -> None:
    """Minus infinity and years before Christ are overdue, infinity and the year 20000 are not; none breaks."""
    past = [_insert(database, timeout_at_utc=when) for when in ("'-infinity'", "'0044-03-15 12:00+00 BC'")]
    future = [_insert(database, timeout_at_utc=when) for when in ("'20000-01-01 00:00+00'", "'infinity'")]
    with database.engine.connect() as conn:
        ahead = look_ahead(conn, TABLES)
    assert ahead.overdue
    assert ahead.next_due_in == pytest.approx(100 * 365.25 * 86_400, rel=0.01)
    marked = _claim(database)
    assert [run.run_id for run in marked] == past
    assert [run.deadline for run in marked] == [datetime(1, 1, 1, tzinfo=UTC)] * 2
    store = FlowRunControlStore(database.engine)
    for run in future:
        record = store.get_run_control(run)
        assert record is not None
        assert record.timeout_at_utc == LAST


@pytest.mark.contract("E-1", "E-2")
def test_look_ahead_tells_the_next_deadline_and_what_is_overdue(database: Database) -> None:
    """It sees the earliest armed future deadline behind overdue runs, and nothing where nothing is armed."""
    with database.engine.connect() as conn:
        ahead = look_ahead(conn, TABLES)
        assert (ahead.next_due_in, ahead.overdue) == (None, False)
    _insert(database, timeout_at_utc="now() + interval '5 seconds'", cancel_requested="true")
    _insert(database, timeout_at_utc="now() + interval '90 seconds'")
    _insert(database, timeout_at_utc="now() + interval '30 days'")
    due = _insert(database, timeout_at_utc="now() - interval '1 day'")
    with psycopg.connect(database.conninfo) as other, database.engine.connect() as conn:
        other.execute("SELECT FROM flow_run_controls WHERE run_id = %s FOR UPDATE", [due])
        ahead = look_ahead(conn, TABLES)
        assert ahead.overdue
        assert ahead.next_due_in == pytest.approx(90, abs=30)
    _claim(database)
    with database.engine.connect() as conn:
        assert not look_ahead(conn, TABLES).overdue


@pytest.mark.contract("E-1")
def test_batches_come_in_the_order_of_deadline_and_run_id(database: Database) -> None:
    """The earliest deadlines go first, equal ones by run id, and a batch is sorted the same way."""
    with psycopg.connect(database.conninfo) as conn:
        conn.execute(
            "INSERT INTO flow_run_controls (run_id, timeout_at_utc) "
            "SELECT gen_random_uuid(), date_trunc('day', now()) - (n %% 7) * interval '1 hour' "
            "FROM generate_series(1, 70) n",
            [],
        )
        expected = conn.execute("SELECT run_id FROM flow_run_controls ORDER BY timeout_at_utc, run_id").fetchall()
    batches = [_claim(database, limit=30) for _ in range(4)]
    assert [len(batch) for batch in batches] == [30, 30, 10, 0]
    assert [run.run_id for batch in batches for run in batch] == [run for (run,) in expected]


@pytest.mark.contract("E-1", "E-7")
def test_a_drain_continues_behind_its_cursor(database: Database) -> None:
    """With a cursor, a batch starts behind the last run of the one before, also among equal deadlines."""
    with psycopg.connect(database.conninfo) as conn:
        conn.execute(
            "INSERT INTO flow_run_controls (run_id, timeout_at_utc) SELECT gen_random_uuid(), "
            "now() - interval '1 hour' + (n / 20) * interval '1 minute' FROM generate_series(0, 59) n"
        )
        expected = [
            run for (run,) in conn.execute("SELECT run_id FROM flow_run_controls ORDER BY timeout_at_utc, run_id")
        ]
    first = _claim(database, limit=25)
    # Armed again before the cursor: only a batch from the start may find it.
    assert FlowRunControlStore(database.engine).extend_deadline(expected[3], datetime(2001, 1, 1, tzinfo=UTC))
    second = _claim(database, limit=25, after=first[-1])
    third = _claim(database, limit=25, after=second[-1])
    assert [run.run_id for run in first + second + third] == expected
    assert _claim(database, limit=25, after=third[-1]) == []
    assert [run.run_id for run in _claim(database, limit=25)] == [expected[3]]


@pytest.mark.contract("E-1", "E-3")
def test_rows_that_somebody_holds_are_passed_over_and_the_limit_still_fills(database: Database) -> None:
    """Locked runs are neither waited for nor counted; they are marked when they are free again."""
    runs = [_insert(database, timeout_at_utc=f"now() - interval '{9 - n} hours'") for n in range(6)]
    with psycopg.connect(database.conninfo) as other:
        other.execute("SELECT FROM flow_run_controls WHERE run_id = ANY(%s) FOR NO KEY UPDATE", [runs[:3]])
        before = _rows(database, *runs[:3])
        assert [run.run_id for run in _claim(database, limit=2)] == runs[3:5]
        assert [run.run_id for run in _claim(database, limit=2)] == runs[5:]
        assert _claim(database) == []
        with database.engine.connect() as conn:
            assert look_ahead(conn, TABLES).overdue
        other.rollback()
    # A lock leaves its trace in xmax alone.
    assert [row[:2] for row in _rows(database, *runs[:3])] == [row[:2] for row in before]
    assert [run.run_id for run in _claim(database)] == runs[:3]


@pytest.mark.contract("E-1")
def test_a_row_that_a_foreign_key_of_others_points_to_is_no_obstacle(database: Database) -> None:
    """A key-share lock, as another table's foreign key takes it, does not hide a run from the claim."""
    run = _insert(database, timeout_at_utc="now()")
    with psycopg.connect(database.conninfo) as other:
        other.execute("SELECT FROM flow_run_controls FOR KEY SHARE")
        assert [claimed.run_id for claimed in _claim(database)] == [run]


@pytest.mark.contract("E-7", "L-3")
def test_every_arming_is_marked_once(database: Database) -> None:
    """Extended, reopened or configured anew, a run is marked again at each new deadline, and once for each."""
    store = FlowRunControlStore(database.engine)
    run = _insert(database, timeout_at_utc="now()")
    past = datetime.now(UTC) - timedelta(days=1)
    assert [len(_claim(database)), len(_claim(database))] == [1, 0]
    assert store.extend_deadline(run, past)
    assert [len(_claim(database)), len(_claim(database))] == [1, 0]
    assert store.reopen_run(run, past)
    assert [len(_claim(database)), len(_claim(database))] == [1, 0]
    store.configure_run(run, uuid4(), "t", None, past)
    assert _claim(database) == []


@pytest.mark.contract("E-1", "E-2", "E-9")
@pytest.mark.parametrize("level", ["read committed", "repeatable read", "serializable"])
def test_a_claim_in_autocommit_works_whatever_the_roles_default_isolation_is(database: Database, level: str) -> None:
    """The default isolation of the role changes nothing about what is marked, passed over or filled."""
    runs = [_insert(database, timeout_at_utc=f"now() - interval '{9 - n} hours'") for n in range(4)]
    live = _insert(database, timeout_at_utc="now() + interval '1 hour'")
    options = {"options": f"-c default_transaction_isolation={level.replace(' ', chr(92) + ' ')}"}
    engine = create_engine(database.url, poolclass=NullPool, connect_args=options)
    with psycopg.connect(database.conninfo) as other, engine.connect() as plain:
        other.execute("SELECT FROM flow_run_controls WHERE run_id = %s FOR UPDATE", [runs[0]])
        conn = _autocommit(plain)
        assert conn.exec_driver_sql("SHOW transaction_isolation").scalar() == level
        before = _rows(database, live)
        assert [run.run_id for run in claim_overdue(conn, TABLES, limit=2)] == runs[1:3]
        assert [run.run_id for run in claim_overdue(conn, TABLES, limit=2)] == runs[3:]
        other.rollback()
        assert [run.run_id for run in claim_overdue(conn, TABLES, limit=2)] == runs[:1]
    assert _rows(database, live) == before
