"""Adopting a FlowOrchestrator database that is in use: no rewrite, no changed row, no interrupted writer."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from sqlalchemy import event

from curfew_store import FlowRunControlStore, RunState, StartedRun
from curfew_store.enforcement import OVERDUE_REASON, claim_overdue
from curfew_store.migrate import upgrade
from curfew_store.schema import tables_in
from curfew_store.version import LATEST
from tests.conftest import Database
from tests.integration.roles import engine_as, new_role
from tests.integration.shapes import MIGRATED, shape_of
from tests.integration.upstream import COLUMNS, STARTUP_BATCH, DotNetService
from tests.patience import PATIENCE

_FILL = """
INSERT INTO flow_runs (id, flow_id, flow_name, status, trigger_key, started_at, completed_at)
SELECT md5(n::text)::uuid, '11111111-1111-4111-8111-111111111111', 'orders',
    CASE WHEN n % 3 = 0 THEN 'Running' ELSE 'Succeeded' END, 'Manual', now() - interval '1 day',
    CASE WHEN n % 3 > 0 THEN now() - interval '1 hour' END
FROM generate_series(1, 3000) n;
INSERT INTO flow_run_controls (run_id, flow_id, trigger_key, idempotency_key, timeout_at_utc, cancel_requested,
    cancel_reason, cancel_requested_at_utc, timed_out_at_utc)
SELECT md5(n::text)::uuid, '11111111-1111-4111-8111-111111111111', 'Manual', 'Key-' || n,
    CASE n % 4 WHEN 0 THEN NULL WHEN 1 THEN now() - interval '1 hour' WHEN 2 THEN '-infinity'
        ELSE now() + interval '1 hour' END,
    n % 5 < 2, CASE WHEN n % 5 < 2 THEN 'because' END, CASE WHEN n % 5 < 2 THEN now() END,
    CASE WHEN n % 5 = 0 THEN now() END
FROM generate_series(1, 3000) n;
INSERT INTO flow_idempotency_keys (flow_id, trigger_key, idempotency_key, run_id)
SELECT '11111111-1111-4111-8111-111111111111', 'manual', 'key-' || n, md5(n::text)::uuid
FROM generate_series(1, 3000) n;
"""

_FILES = "SELECT relname, relfilenode FROM pg_class WHERE relname IN ({}) ORDER BY relname"
_TABLES = "'flow_runs', 'flow_run_controls', 'flow_idempotency_keys'"
_ROWS = {
    "flow_run_controls": f"SELECT ctid, xmin, {', '.join(COLUMNS)} FROM flow_run_controls ORDER BY run_id",
    "flow_idempotency_keys": "SELECT ctid, xmin, k.* FROM flow_idempotency_keys k ORDER BY run_id",
    "flow_runs": "SELECT ctid, xmin, r.* FROM flow_runs r ORDER BY id",
}

FLOW = UUID("11111111-1111-4111-8111-111111111111")


def _contents(conn: psycopg.Connection[Any]) -> dict[str, str]:
    # As text, since Python has no year -infinity.
    return {
        name: conn.execute(f"SELECT md5(string_agg(t::text, '|')) FROM ({rows}) t").fetchall()[0][0]
        for name, rows in _ROWS.items()
    }


@pytest.fixture
def upstream_database(empty_database: Database) -> Database:
    """A database that a FlowOrchestrator has been working on."""
    with psycopg.connect(empty_database.conninfo) as conn:
        conn.execute(STARTUP_BATCH)
        conn.execute(_FILL)
    return empty_database


@pytest.mark.contract("T-1", "T-2", "T-3", "T-4")
def test_adopting_rewrites_no_table_and_changes_no_row(upstream_database: Database) -> None:
    """Every row stays where it was, with its version; its new columns show the adoption and nothing else."""
    with psycopg.connect(upstream_database.conninfo, autocommit=True) as conn:
        files, contents = conn.execute(_FILES.format(_TABLES)).fetchall(), _contents(conn)
        (before,) = conn.execute("SELECT clock_timestamp()").fetchall()[0]
        assert upgrade(upstream_database.engine) == (None, LATEST)
        (after,) = conn.execute("SELECT clock_timestamp()").fetchall()[0]
        assert conn.execute(_FILES.format(_TABLES)).fetchall() == files
        assert _contents(conn) == contents
        added = "SELECT DISTINCT created_at_utc, completed_at_utc FROM flow_run_controls"
        ((created, completed),) = conn.execute(added).fetchall()
        # The value of rows from before is kept in the catalogue, once.
        (fast_default,) = conn.execute(
            "SELECT atthasmissing FROM pg_attribute WHERE attrelid = 'flow_run_controls'::regclass "
            "AND attname = 'created_at_utc'"
        ).fetchall()[0]
    assert before < created < after
    assert completed is None
    assert fast_default
    assert shape_of(upstream_database.engine) == MIGRATED


@pytest.mark.contract("T-5", "U-2")
def test_upstreams_start_up_still_works_after_the_adoption(upstream_database: Database) -> None:
    """The batch of every .NET start changes nothing, and makes nothing a second time."""
    upgrade(upstream_database.engine)
    DotNetService(upstream_database.conninfo).start_host()
    assert shape_of(upstream_database.engine) == MIGRATED


def test_upstreams_start_up_after_a_migration_from_nothing_finds_its_tables(database: Database) -> None:
    """Where curfewd came first, a .NET start adds its own tables and leaves ours as they are."""
    DotNetService(database.conninfo).start_host()
    assert shape_of(database.engine) == MIGRATED


@pytest.mark.contract("T-4", "F-3", "U-2")
def test_adopted_rows_are_read_and_claimed_by_their_content(upstream_database: Database) -> None:
    """The store reads upstream's rows in every state, and a claim marks the armed and due ones alone."""
    upgrade(upstream_database.engine)
    store = FlowRunControlStore(upstream_database.engine)
    with psycopg.connect(upstream_database.conninfo, autocommit=True) as conn:
        due = conn.execute(
            "SELECT run_id FROM flow_run_controls WHERE timed_out_at_utc IS NULL AND NOT cancel_requested "
            "AND timeout_at_utc < now() ORDER BY run_id"
        ).fetchall()
        rest = "SELECT md5(string_agg(c::text, '|' ORDER BY run_id)) FROM flow_run_controls c WHERE run_id <> ALL(%s)"
        untouched = conn.execute(rest, [[run for (run,) in due]]).fetchall()
        with upstream_database.engine.begin() as sa_conn:
            claimed = claim_overdue(sa_conn, tables_in("public"), limit=5000)
        assert sorted(run.run_id for run in claimed) == [run for (run,) in due]
        assert conn.execute(rest, [[run for (run,) in due]]).fetchall() == untouched
    assert len(due) == 900
    record = store.get_run_control(due[0][0])
    assert record is not None
    assert (record.state, record.cancel_reason) == (RunState.TIMED_OUT, OVERDUE_REASON)
    assert store.find_run_id_by_idempotency_key(FLOW, " MANUAL", "KEY-7 ") is not None
    again = store.start_run(FLOW, "Manual", "Key-7")
    assert again.duplicate


@contextmanager
def _writers(database: Database, count: int) -> Iterator[tuple[list[float], list[BaseException]]]:
    """.NET producers that write as fast as they can; how long each write took, and what went wrong."""
    stop, started = threading.Event(), threading.Barrier(count + 1)
    waits: list[float] = []
    errors: list[BaseException] = []

    def write() -> None:
        service = DotNetService(database.conninfo)
        service.get(uuid4())
        started.wait()
        while not stop.is_set():
            run, begin = uuid4(), time.monotonic()
            try:
                service.register(FLOW, "manual", str(run), run)
                service.configure(run, FLOW, "manual", str(run), datetime.now(UTC) + timedelta(hours=1))
                service.extend(run, datetime.now(UTC) + timedelta(hours=2))
            except BaseException as error:  # noqa: BLE001 - whatever it is, it is the finding
                errors.append(error)
                return
            waits.append(time.monotonic() - begin)

    threads = [threading.Thread(target=write) for _ in range(count)]
    for thread in threads:
        thread.start()
    started.wait()
    try:
        yield waits, errors
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@pytest.mark.contract("T-4", "T-5")
def test_producers_keep_writing_through_the_adoption(upstream_database: Database) -> None:
    """While the tables are adopted, writers of all kinds see no error and wait no longer than a lock may."""
    written: list[int] = []
    with _writers(upstream_database, 2) as (waits, errors):
        # Each statement of the migration meets writes that came since the one before.
        def let_them_write(*_: Any) -> None:
            seen = len(waits)
            give_up = time.monotonic() + PATIENCE
            while len(waits) == seen and not errors and time.monotonic() < give_up:
                time.sleep(0.001)
            written.append(len(waits) - seen)

        event.listen(upstream_database.engine, "before_cursor_execute", let_them_write)
        assert upgrade(upstream_database.engine) == (None, LATEST)
        event.remove(upstream_database.engine, "before_cursor_execute", let_them_write)
    assert errors == []
    assert all(written)
    # A statement that waits for its lock holds up those behind it for at most its lock_timeout of 3 s.
    assert max(waits) < 4
    with psycopg.connect(upstream_database.conninfo) as conn:
        ((rows,),) = conn.execute("SELECT count(*) FROM flow_run_controls").fetchall()
    assert rows == 3000 + len(waits)
    assert shape_of(upstream_database.engine) == MIGRATED


@pytest.fixture
def members(database: Database) -> Iterator[tuple[str, str]]:
    """Two members of a role that owns the tables of a .NET service in the schema ``shared``."""
    with new_role(database, "owner") as owner:
        with psycopg.connect(database.conninfo, autocommit=True) as admin:
            admin.execute(f"CREATE SCHEMA shared; GRANT ALL ON SCHEMA shared TO {owner}".encode())
            admin.execute(f"SET ROLE {owner}; SET search_path = shared".encode())
            admin.execute(STARTUP_BATCH)
        membership = f"IN ROLE {owner}"
        with new_role(database, "one", membership) as one, new_role(database, "two", membership) as two:
            yield one, two


@pytest.mark.contract("T-7")
def test_tables_of_a_shared_role_serve_both_services(database: Database, members: tuple[str, str]) -> None:
    """One member of the owning role migrates and uses the tables, the other runs upstream's start-up there."""
    ours, upstreams = (engine_as(name, database) for name in members)
    assert upgrade(ours, schema="shared") == (None, LATEST)
    with upstreams.begin() as conn:
        conn.exec_driver_sql("SET LOCAL search_path = shared")
        conn.exec_driver_sql(STARTUP_BATCH)
        conn.exec_driver_sql("INSERT INTO flow_run_controls (run_id) VALUES (gen_random_uuid())")
    run = uuid4()
    store = FlowRunControlStore(ours, schema="shared")
    assert store.start_run(FLOW, "manual", "k", run_id=run) == StartedRun(run, False)
    assert shape_of(database.engine, "shared") == MIGRATED


@pytest.mark.contract("T-7")
def test_what_one_member_migrated_serves_every_member(database: Database, members: tuple[str, str]) -> None:
    """After a migration by one member of the owning role, another may use the store and migrate again."""
    first, second = (engine_as(name, database) for name in members)
    upgrade(first, schema="shared")
    store, run = FlowRunControlStore(second, schema="shared"), uuid4()
    assert store.start_run(FLOW, "manual", "k", run_id=run) == StartedRun(run, False)
    assert upgrade(second, schema="shared") == (LATEST, LATEST)
