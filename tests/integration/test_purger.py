"""The daemon's purge on real tables: what goes, what stays, whom it waits for, and what an interruption leaves."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy.exc
from sqlalchemy import Connection, create_engine, text

from curfew_daemon.purger import Purger
from curfew_daemon.results import PurgedSlice
from curfew_store import FlowRunControlStore, retention
from curfew_store.retention import PageRange, count_old, purge_ended_runs, turn_key
from curfew_store.schema import Tables, tables_in
from curfew_store.testing import DatabaseTemplate
from tests.integration.contract.rows import FLOW, Rows

TABLES = tables_in("public")
HOUR = 3600.0
OLD = "now() - interval '1 hour 1 minute'"
YOUNG = "now() - interval '59 minutes'"
LOCK = "SELECT 1 FROM flow_run_controls WHERE run_id = :run FOR UPDATE"
ENDS = {
    "completed": ("completed_at_utc",),
    "timed_out": ("timed_out_at_utc", "cancel_requested_at_utc"),
    "cancelled": ("cancel_requested_at_utc",),
}


@pytest.fixture(scope="module")
def url(curfew_database: DatabaseTemplate) -> Iterator[str]:
    """The database of this module; making one for each test would take most of its time."""
    name = curfew_database.create()
    yield curfew_database.server.sqlalchemy_url(name)
    curfew_database.drop(name)


@pytest.fixture
def rows(url: str) -> Iterator[Rows]:
    seen = Rows(url)
    seen.sql("TRUNCATE flow_run_controls, flow_idempotency_keys")
    yield seen
    seen.close()


@pytest.fixture
def conn(url: str) -> Iterator[Connection]:
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        yield connection
    engine.dispose()


@pytest.fixture
def purger(conn: Connection) -> Purger:
    """One that keeps an hour and deletes few rows at a time."""
    return Purger(TABLES, lambda: conn, older_than=lambda: HOUR, batch_size=7)


def ended(rows: Rows, state: str, at: str, *, key_at: str | None = None) -> UUID:
    """A run that ended in this state at this moment, with a key."""
    run = rows.insert(state, **dict.fromkeys(ENDS[state], at))
    rows.insert_key(run, f"key of {run}", created=key_at or at)
    return run


def many(rows: Rows, count: int, ended_at: str = OLD) -> None:
    """Completed runs, each with a key."""
    rows.sql(
        "WITH made AS (INSERT INTO flow_run_controls (run_id, completed_at_utc) "
        f"SELECT gen_random_uuid(), {ended_at} FROM generate_series(1, {count}) RETURNING run_id) "
        "INSERT INTO flow_idempotency_keys (flow_id, trigger_key, idempotency_key, run_id, created_at_utc) "
        f"SELECT run_id, 't', run_id::text, run_id, {ended_at} FROM made"
    )


def left(rows: Rows) -> tuple[int, int]:
    """How many runs and keys there are."""
    found = rows.sql("SELECT (SELECT count(*) FROM flow_run_controls), (SELECT count(*) FROM flow_idempotency_keys)")
    return int(found[0][0]), int(found[0][1])


@pytest.mark.contract("P-5", "P-6")
@pytest.mark.parametrize("state", ENDS)
def test_ended_runs_go_with_their_keys_by_the_age_of_their_end(rows: Rows, purger: Purger, state: str) -> None:
    """A run that ended an hour and a minute ago goes with all its keys; one that ended a minute later stays whole."""
    old = ended(rows, state, OLD)
    rows.insert_key(old, "a young key of an old run", created="now()")
    young = ended(rows, state, YOUNG, key_at=OLD)
    before = rows.row(young)
    result = purger.run_once()
    assert (result.outcome, result.deleted) == ("done", PurgedSlice(1, 2, 0))
    assert (rows.row(old), rows.keys_of(old)) == (None, [])
    assert not rows.changed(before, young)
    assert len(rows.keys_of(young)) == 1


@pytest.mark.contract("P-7")
def test_what_has_not_ended_is_never_deleted(rows: Rows, purger: Purger) -> None:
    """Active, disarmed and overdue runs stay however old they are, and so do their keys; a stamp alone is no cancel."""
    ages = {"created_at_utc": "now() - interval '10 years'"}
    for state in ("active", "disarmed", "overdue"):
        rows.insert_key(rows.insert(state, **ages), state, created=ages["created_at_utc"])
    rows.insert("active", **ages, cancel_requested_at_utc=OLD)
    rows.insert("cancelled", **ages, cancel_requested_at_utc="NULL")
    rows.insert("active", **ages, timeout_at_utc="'-infinity'")
    before = rows.everything()
    assert purger.run_once().deleted == PurgedSlice()
    assert rows.everything() == before


@pytest.mark.contract("P-6")
def test_the_last_end_counts(rows: Rows, purger: Purger) -> None:
    """A cancelled run that completed later is as old as its completion."""
    run = rows.insert("cancelled", cancel_requested_at_utc=OLD, completed_at_utc=YOUNG)
    assert purger.run_once().deleted == PurgedSlice()
    assert rows.row(run) is not None


@pytest.mark.contract("P-8")
def test_orphaned_keys_go_by_their_own_age(rows: Rows, purger: Purger) -> None:
    """A key that points to no record goes once it is an hour old; those of records stay, however old."""
    rows.insert_key(uuid4(), "old", created=OLD)
    rows.insert_key(young := uuid4(), "young", created=YOUNG)
    rows.insert_key(live := rows.insert("active"), "live", created=OLD)
    assert purger.run_once().deleted == PurgedSlice(0, 0, 1)
    assert (len(rows.keys_of(young)), len(rows.keys_of(live))) == (1, 1)


def test_more_than_a_batch_goes_in_batches(rows: Rows, conn: Connection) -> None:
    """300 runs behind many pages of others: every statement deletes 7 at most, and all have gone in the end."""
    rows.sql("INSERT INTO flow_run_controls (run_id) SELECT gen_random_uuid() FROM generate_series(1, 5000)")
    many(rows, 300)
    many(rows, 100, YOUNG)
    rows.sql(
        "INSERT INTO flow_idempotency_keys (flow_id, trigger_key, idempotency_key, run_id, created_at_utc) "
        f"SELECT gen_random_uuid(), 't', 'k', gen_random_uuid(), {OLD} FROM generate_series(1, 50)"
    )
    slices: list[PurgedSlice] = []
    result = Purger(TABLES, lambda: conn, older_than=lambda: HOUR, on_slice=slices.append, batch_size=7).run_once()
    assert result.deleted == sum(slices, PurgedSlice()) == PurgedSlice(300, 300, 50)
    assert max(each.runs + each.orphaned_keys for each in slices) == 7
    assert left(rows) == (5100, 100)
    assert result.statements >= len(slices) >= 43 + 8


@pytest.mark.contract("P-9")
def test_rows_in_use_are_passed_over(rows: Rows, purger: Purger) -> None:
    """A run that somebody holds is not waited for; its key stays with it, and both go in the next round."""
    held, free = ended(rows, "completed", OLD), ended(rows, "completed", OLD)
    with rows.held(LOCK, run=held):
        assert purger.run_once().deleted == PurgedSlice(1, 1, 0)
    assert rows.row(free) is None
    assert (rows.row(held) is not None, len(rows.keys_of(held))) == (True, 1)
    assert purger.run_once().deleted == PurgedSlice(1, 1, 0)


@pytest.mark.contract("P-9")
def test_a_run_that_is_reopened_at_the_last_moment_stays(rows: Rows, purger: Purger) -> None:
    """Reopened, and committed while the statement waits to lock the row that it saw as old: it is judged again."""
    runs = [ended(rows, "completed", OLD) for _ in range(2)]
    # A policy makes every row wait at a gate: the statement has its snapshot, and has yet to lock what it sees as old.
    role = f"purging_{uuid4().hex[:8]}"
    rows.sql(
        "CREATE FUNCTION public.gate() RETURNS boolean VOLATILE LANGUAGE plpgsql AS "
        "'BEGIN PERFORM pg_advisory_lock_shared(77); PERFORM pg_advisory_unlock_shared(77); RETURN true; END'"
    )
    rows.sql("ALTER TABLE flow_run_controls ENABLE ROW LEVEL SECURITY")
    rows.sql("CREATE POLICY gate ON flow_run_controls USING (gate())")
    rows.sql(f"CREATE ROLE {role}")
    rows.sql(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}")
    engine = create_engine(rows.engine.url, isolation_level="AUTOCOMMIT", connect_args={"options": f"-c role={role}"})
    outcome: list[PurgedSlice] = []
    try:
        with engine.connect() as slow, rows.held("SELECT pg_advisory_lock(77)") as gate:
            purging = Purger(TABLES, lambda: slow, older_than=lambda: HOUR)
            thread = threading.Thread(target=lambda: outcome.append(purging.run_once().deleted))
            thread.start()
            rows.wait_until_blocked()
            assert FlowRunControlStore(rows.engine).reopen_run(runs[0], timeout=timedelta(hours=1))
            gate.exec_driver_sql("SELECT pg_advisory_unlock(77)")
            thread.join()
    finally:
        engine.dispose()
        rows.sql("DROP POLICY gate ON flow_run_controls")
        rows.sql("ALTER TABLE flow_run_controls DISABLE ROW LEVEL SECURITY")
        rows.sql("DROP FUNCTION gate()")
        rows.sql(f"DROP OWNED BY {role}")
        rows.sql(f"DROP ROLE {role}")
    assert outcome == [PurgedSlice(1, 1, 0)]
    assert rows.row(runs[0]) is not None
    assert len(rows.keys_of(runs[0])) == 1
    assert rows.row(runs[1]) is None


@pytest.mark.contract("P-10")
def test_the_key_of_a_purged_run_starts_another(rows: Rows, purger: Purger) -> None:
    """After the purge the same key is free, and is registered for a new run."""
    store = FlowRunControlStore(rows.engine)
    first = store.start_run(FLOW, "t", "again")
    rows.sql(f"UPDATE flow_run_controls SET completed_at_utc = {OLD}")
    assert store.start_run(FLOW, "t", "again").duplicate
    purger.run_once()
    second = store.start_run(FLOW, "t", "again")
    assert (second.duplicate, second.run_id == first.run_id) == (False, False)


@pytest.mark.contract("P-10")
def test_a_key_that_is_registered_during_the_purge_belongs_to_the_new_run(rows: Rows) -> None:
    """A producer whose key is being deleted waits for the statement, then starts its run."""
    store = FlowRunControlStore(rows.engine)
    first = store.start_run(FLOW, "t", "again")
    rows.sql(f"UPDATE flow_run_controls SET completed_at_utc = {OLD}")
    started: list[object] = []
    with rows.engine.connect() as plain:
        purging = plain.execution_options(isolation_level="READ COMMITTED")
        pages = PageRange(0, 100)
        assert purge_ended_runs(purging, TABLES, pages, older_than=timedelta(hours=1), limit=10).rows == 1
        thread = threading.Thread(target=lambda: started.append(store.start_run(FLOW, "t", "again")))
        thread.start()
        rows.wait_until_blocked()
        purging.commit()
        thread.join()
    second = store.find_run_id_by_idempotency_key(FLOW, "t", "again")
    assert second not in {None, first.run_id}
    assert left(rows) == (1, 1)


@pytest.mark.contract("P-11")
def test_one_session_purges_at_a_time(rows: Rows, purger: Purger) -> None:
    """While another session has the turn, nothing is looked at and the round is left to it."""
    ended(rows, "completed", OLD)
    rows.insert_key(uuid4(), "orphan", created=OLD)
    with rows.held("SELECT pg_advisory_xact_lock(:turn)", turn=turn_key("public")):
        result = purger.run_once()
        assert (result.outcome, result.statements) == ("aside", 0)
        assert left(rows) == (1, 2)
    assert turn_key("public") != turn_key("other")
    assert purger.run_once().deleted == PurgedSlice(1, 1, 1)


@pytest.mark.contract("P-11")
def test_a_round_comes_in_between_two_statements_of_another(rows: Rows, conn: Connection) -> None:
    """A turn that is taken once is asked for again: the round is not given up for it."""
    ended(rows, "completed", OLD)
    asked: list[float] = []

    def older_than() -> float:
        asked.append(HOUR)
        if len(asked) == 3:
            holder.execute(text("SELECT pg_advisory_unlock(:turn)"), {"turn": turn_key("public")})
        return HOUR

    with rows.engine.connect() as plain:
        holder = plain.execution_options(isolation_level="AUTOCOMMIT")
        holder.execute(text("SELECT pg_advisory_lock(:turn)"), {"turn": turn_key("public")})
        result = Purger(TABLES, lambda: conn, older_than=older_than, patience=60.0).run_once()
    assert len(asked) > 3
    assert (result.outcome, result.deleted) == ("done", PurgedSlice(1, 1, 0))


class Breaking:
    """Hands out the connection, and has its session killed before the n-th statement."""

    def __init__(self, rows: Rows, after: int) -> None:
        self._rows = rows
        self._engine = create_engine(rows.engine.url, isolation_level="AUTOCOMMIT")
        self._left = after
        self._conn: Connection | None = None

    def __call__(self) -> Connection:
        if self._conn is None:
            self._conn = self._engine.connect()
            self._pid = self._conn.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        self._left -= 1
        if self._left == 0:
            self._rows.sql("SELECT pg_terminate_backend(:pid, 5000)", pid=self._pid)
        return self._conn

    def drop(self) -> None:
        assert self._conn is not None
        self._conn.close()
        self._conn = None
        self._engine.dispose()


def test_a_round_that_is_cut_off_loses_nothing_and_goes_on(rows: Rows) -> None:
    """Its session killed midway, what was deleted is gone with its keys, and the next call deletes the rest."""
    many(rows, 100)
    breaking = Breaking(rows, after=5)
    told: list[PurgedSlice] = []
    purger = Purger(TABLES, breaking, older_than=lambda: HOUR, on_slice=told.append, batch_size=10)
    with pytest.raises(sqlalchemy.exc.OperationalError):
        purger.run_once()
    runs, keys = left(rows)
    assert runs == keys == 100 - sum(each.runs for each in told)
    assert 0 < runs < 100
    breaking.drop()
    assert purger.run_once().deleted == PurgedSlice(100, 100, 0)
    assert left(rows) == (0, 0)
    breaking.drop()


def test_pages_that_do_not_get_through_are_left_to_the_next_round(rows: Rows, conn: Connection) -> None:
    """`skip` moves the walk behind the pages in hand; a later round sees them again."""
    many(rows, 30)
    purger = Purger(TABLES, lambda: conn, older_than=lambda: HOUR)
    purger.skip()
    assert purger.run_once().deleted == PurgedSlice()
    assert purger.run_once().deleted == PurgedSlice(30, 30, 0)


@pytest.mark.parametrize("how", ["stop", "unset"])
def test_a_round_ends_at_once_when_it_is_told_to(rows: Rows, conn: Connection, how: str) -> None:
    """A stop, or a retention that was taken back, ends the round after the statement in hand."""
    many(rows, 100)
    stopping, kept = threading.Event(), [HOUR, None]

    def end(_: PurgedSlice) -> None:
        if how == "stop":
            stopping.set()

    def older_than() -> float | None:
        return HOUR if how == "stop" else kept.pop(0)

    purger = Purger(TABLES, lambda: conn, older_than=older_than, on_slice=end, stopping=stopping, batch_size=10)
    result = purger.run_once()
    assert (result.outcome, result.deleted.runs) == ("stopped", 10)
    assert left(rows) == (90, 90)


@pytest.mark.parametrize("analysed", [True, False])
@pytest.mark.parametrize("statement", [retention._ended_runs_statement, retention._orphaned_keys_statement])
def test_a_statement_reads_its_pages_and_no_others(
    rows: Rows, conn: Connection, statement: Callable[[Tables], Any], analysed: bool
) -> None:
    """On a table of many pages its plan is a scan of the range, and what it deletes is found by an index."""
    many(rows, 20_000)
    rows.sql("INSERT INTO flow_run_controls (run_id) SELECT gen_random_uuid() FROM generate_series(1, 20000)")
    if analysed:
        rows.sql("ANALYZE flow_run_controls, flow_idempotency_keys")
    compiled = statement(TABLES).compile(dialect=conn.dialect)
    given = {"turn": 1, "seconds": HOUR, "first": "(8,0)", "end": "(12,0)", "limit": 500}
    plan = "\n".join(conn.exec_driver_sql(f"EXPLAIN {compiled}", {**compiled.params, **given}).scalars())
    assert "Tid Range Scan" in plan
    assert "Seq Scan" not in plan, plan


def test_every_partition_is_gone_through(rows: Rows, conn: Connection) -> None:
    """On tables partitioned by hash a range of pages is that of every partition, and the largest ends the walk."""
    rows.sql("CREATE SCHEMA parts")
    for table, key in (("flow_run_controls", "run_id"), ("flow_idempotency_keys", "flow_id")):
        rows.sql(f"CREATE TABLE parts.{table} (LIKE public.{table} INCLUDING ALL) PARTITION BY HASH ({key})")
        for remainder in range(3):
            rows.sql(
                f"CREATE TABLE parts.{table}_{remainder} PARTITION OF parts.{table} "
                f"FOR VALUES WITH (MODULUS 3, REMAINDER {remainder})"
            )
    rows.sql(
        f"INSERT INTO parts.flow_run_controls (run_id, completed_at_utc) SELECT gen_random_uuid(), {OLD} "
        "FROM generate_series(1, 2000)"
    )
    rows.sql(
        "INSERT INTO parts.flow_idempotency_keys (flow_id, trigger_key, idempotency_key, run_id, created_at_utc) "
        f"SELECT gen_random_uuid(), 't', 'k', run_id, {OLD} FROM parts.flow_run_controls "
        f"UNION ALL SELECT gen_random_uuid(), 't', 'k', gen_random_uuid(), {OLD} FROM generate_series(1, 20)"
    )
    rows.sql(f"INSERT INTO parts.flow_run_controls (run_id, completed_at_utc) SELECT gen_random_uuid(), {YOUNG}")
    result = Purger(tables_in("parts"), lambda: conn, older_than=lambda: HOUR).run_once()
    left = rows.sql("SELECT (SELECT count(*) FROM parts.flow_run_controls), count(*) FROM parts.flow_idempotency_keys")
    rows.sql("DROP SCHEMA parts CASCADE")
    assert result.deleted == PurgedSlice(2000, 2000, 20)
    assert tuple(left[0]) == (1, 0)


def test_the_count_is_what_a_purge_would_find(rows: Rows, conn: Connection, purger: Purger) -> None:
    """Ended runs and orphaned keys beyond the age; the keys of runs are not counted, and nothing changes."""
    many(rows, 20)
    many(rows, 5, YOUNG)
    rows.insert_key(uuid4(), "orphan", created=OLD)
    before = rows.everything()
    assert count_old(conn, TABLES, older_than=timedelta(hours=1)) == (20, 1)
    assert rows.everything() == before
    assert purger.run_once().deleted == PurgedSlice(20, 20, 1)
