"""What a look ahead says at the very moments that count: at a deadline, and at the place where it begins."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import psycopg
import pytest
from sqlalchemy import Connection, create_engine
from sqlalchemy.pool import NullPool

from curfew_store import FlowRunControlStore
from curfew_store.enforcement import claim_overdue, look_ahead
from curfew_store.schema import tables_in
from tests.conftest import Database

TABLES = tables_in("public")
FLOW = UUID(int=7)
NOW = datetime(2030, 1, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)

# In the search path of the session, this stands before PostgreSQL's own: the clock stands still.
_CLOCK = """
CREATE SCHEMA clock;
CREATE FUNCTION clock.now() RETURNS timestamptz LANGUAGE sql STABLE
    AS $$ SELECT '2030-01-01 00:00:00+00'::timestamptz $$;
"""


@pytest.fixture
def store(database: Database) -> FlowRunControlStore:
    """A producer's store."""
    return FlowRunControlStore(database.engine)


@pytest.fixture
def at_noon(database: Database) -> Iterator[Connection]:
    """A session for which it is `NOW` for ever, in autocommit."""
    with psycopg.connect(database.conninfo, autocommit=True) as conn:
        conn.execute(_CLOCK)
    options = {"options": "-c search_path=clock,pg_catalog"}
    engine = create_engine(database.url, poolclass=NullPool, connect_args=options)
    with engine.connect() as plain:
        yield plain.execution_options(isolation_level="AUTOCOMMIT")


def _armed(store: FlowRunControlStore, deadline: datetime) -> UUID:
    run = uuid4()
    store.configure_run(run, FLOW, "t", None, deadline)
    return run


@pytest.mark.contract("E-2")
def test_a_deadline_equal_to_now_is_overdue_and_not_ahead(store: FlowRunControlStore, at_noon: Connection) -> None:
    """Look and claim agree to the microsecond on what is due."""
    run = _armed(store, NOW)
    seen = look_ahead(at_noon, TABLES)
    assert (seen.earliest_overdue, seen.next_due_in, seen.next_run_id, seen.now) == (NOW, None, None, NOW)
    assert [claimed.run_id for claimed in claim_overdue(at_noon, TABLES, limit=9)] == [run]


@pytest.mark.contract("E-2", "E-8")
def test_a_deadline_a_microsecond_ahead_is_not_due(store: FlowRunControlStore, at_noon: Connection) -> None:
    """It is what comes next, in one microsecond, and no claim takes it."""
    run = _armed(store, NOW + timedelta(microseconds=1))
    seen = look_ahead(at_noon, TABLES)
    assert (seen.earliest_overdue, seen.next_run_id) == (None, run)
    assert seen.next_due_in == pytest.approx(1e-6)
    assert list(claim_overdue(at_noon, TABLES, limit=9)) == []


def test_a_look_that_begins_at_a_deadline_sees_it(store: FlowRunControlStore, at_noon: Connection) -> None:
    """Where a look begins belongs to it; what lies before it does not."""
    first, second = NOW - 2 * SECOND, NOW - SECOND
    _armed(store, first)
    _armed(store, second)
    assert look_ahead(at_noon, TABLES, since=first).earliest_overdue == first
    assert look_ahead(at_noon, TABLES, since=first + timedelta(microseconds=1)).earliest_overdue == second
    assert look_ahead(at_noon, TABLES, since=NOW).earliest_overdue is None


@pytest.mark.contract("E-5")
def test_a_look_counts_armed_runs_only(store: FlowRunControlStore, at_noon: Connection) -> None:
    """Of latched runs neither a lapsed deadline nor one ahead is anybody's business."""
    for deadline in (NOW - SECOND, NOW + SECOND):
        store.request_cancel(_armed(store, deadline))
        store.complete_run(_armed(store, deadline))
        store.mark_timed_out(_armed(store, deadline))
    seen = look_ahead(at_noon, TABLES)
    assert (seen.earliest_overdue, seen.next_due_in, seen.next_run_id) == (None, None, None)
    later, sooner = _armed(store, NOW + 3 * SECOND), _armed(store, NOW + 2 * SECOND)
    seen = look_ahead(at_noon, TABLES, expected=(later, NOW + 3 * SECOND))
    assert (seen.next_run_id, seen.next_due_in, seen.expected_marked) == (sooner, 2.0, False)


def test_a_mark_counts_from_the_moment_on_that_was_asked_for(store: FlowRunControlStore, at_noon: Connection) -> None:
    """A run that was marked earlier, not at all, or that does not exist is told from one that was marked since."""
    run, armed = _armed(store, NOW - SECOND), _armed(store, NOW + SECOND)
    at_noon.exec_driver_sql("UPDATE public.flow_run_controls SET timed_out_at_utc = now() WHERE timeout_at_utc < now()")
    asked = ((run, NOW), (run, NOW + timedelta(microseconds=1)), (armed, NOW), (uuid4(), NOW))
    told = [look_ahead(at_noon, TABLES, expected=each).expected_marked for each in asked]
    assert told == [True, False, False, None]


def test_a_deadline_far_ahead_is_told_as_it_is(store: FlowRunControlStore, at_noon: Connection) -> None:
    """However long it is to it, up to a century, which stands for all that is beyond."""
    run = _armed(store, NOW + timedelta(days=400_000))
    assert look_ahead(at_noon, TABLES).next_due_in == 36_524 * 86_400
    store.configure_run(run, FLOW, "t", None, NOW + timedelta(days=30_000))
    assert look_ahead(at_noon, TABLES).next_due_in == 30_000 * 86_400


def test_what_the_server_spends_on_a_look_is_told(database: Database, at_noon: Connection) -> None:
    """A search that takes it long says so."""
    with psycopg.connect(database.conninfo, autocommit=True) as conn:
        conn.execute(
            "CREATE OR REPLACE FUNCTION clock.now() RETURNS timestamptz LANGUAGE plpgsql STABLE"
            " AS $$ BEGIN PERFORM pg_sleep(0.2); RETURN pg_catalog.now(); END $$"
        )
    assert look_ahead(at_noon, TABLES).took >= 0.2
