"""The gauges: counted without a lock, within a bound and a budget, through a connection of their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import sqlalchemy.exc
from psycopg.conninfo import make_conninfo
from sqlalchemy import text

from curfew_daemon import observer as module
from curfew_daemon.database import Link
from curfew_daemon.failures import DatabaseRefusal, state_of
from curfew_daemon.observer import Observer
from curfew_daemon.results import DatabaseState
from curfew_store.schema import tables_in
from tests.conftest import Database
from tests.integration.contract.rows import STATES, Rows
from tests.integration.sessions import onlooker

TABLES = tables_in("public")


@contextmanager
def observing(database: Database, budget_ms: int = 5000, name: str | None = None) -> Iterator[Observer]:
    link = Link(
        TABLES,
        lambda: make_conninfo(database.conninfo),
        application_name="observer",
        options={"statement_timeout": str(budget_ms)},
        connect_timeout=10,
        longest_dial=20,
        answer_timeout=20,
    )
    observer = Observer(TABLES, link, name=None if name is None else lambda: name)
    try:
        yield observer
    finally:
        observer.close()


def test_an_empty_table(database: Database) -> None:
    """Nothing overdue, nothing armed, nothing ahead."""
    with observing(database) as observer:
        seen = observer.run_once()
    assert (seen.overdue, seen.overdue_capped, seen.oldest_overdue_age) == (0, False, None)
    assert (seen.armed, seen.armed_capped, seen.next_due_in) == (0, False, None)
    assert seen.duration > 0


def test_runs_are_counted_by_what_a_sweep_would_do(rows: Rows, database: Database) -> None:
    """Overdue and armed runs; what is cancelled, completed, marked or without a deadline is neither."""
    for state in STATES:
        rows.insert(state)
    rows.insert("overdue", timeout_at_utc="now() - interval '90 seconds'")
    rows.insert(timeout_at_utc="now() + interval '50 seconds'")
    before = rows.everything()
    with observing(database) as observer:
        seen = observer.run_once()
    assert (seen.overdue, seen.armed) == (2, 2)
    assert seen.oldest_overdue_age == pytest.approx(90, abs=30)
    assert seen.next_due_in == pytest.approx(50, abs=30)
    assert rows.everything() == before


def test_runs_that_others_hold_are_seen(rows: Rows, database: Database) -> None:
    """What a claim passes over is overdue all the same, and looking at it waits for nobody."""
    run = rows.insert("overdue")
    hold = rows.held("SELECT 1 FROM flow_run_controls WHERE run_id = :run FOR UPDATE", run=run)
    with hold, observing(database, budget_ms=2000) as observer:
        assert observer.run_once().overdue == 1


def test_odd_deadlines_have_an_age(rows: Rows, database: Database) -> None:
    """Infinite deadlines break no gauge: minus infinity is a century old, infinity a century ahead."""
    rows.insert(timeout_at_utc="'-infinity'")
    rows.insert(timeout_at_utc="'infinity'")
    with observing(database) as observer:
        seen = observer.run_once()
    century = 100 * 365.25 * 86400
    assert seen.oldest_overdue_age == pytest.approx(century, rel=0.01)
    assert seen.next_due_in == pytest.approx(century, rel=0.01)


def test_a_count_stops_at_its_bound_and_says_so(
    rows: Rows, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the bound it is exact, one more and it is capped."""
    monkeypatch.setattr(module, "COUNT_BOUND", 2)
    with observing(database) as observer:
        for number, (count, capped) in enumerate([(1, False), (2, False), (2, True)], start=1):
            rows.insert("overdue")
            rows.insert("active")
            seen = observer.run_once()
            assert (seen.overdue, seen.overdue_capped) == (count, capped), number
            assert (seen.armed, seen.armed_capped) == (count, capped), number


def test_the_budget_ends_a_look_and_the_next_one_has_a_new_connection(rows: Rows, database: Database) -> None:
    """A table that is locked costs the budget, not more; the failure is raised and forgotten."""
    with observing(database, budget_ms=200) as observer:
        observer.run_once()
        locked = rows.held("LOCK TABLE flow_run_controls")
        with locked, pytest.raises(sqlalchemy.exc.OperationalError) as raised:
            observer.run_once()
        assert state_of(raised.value) is DatabaseState.STATEMENT_TIMEOUT
        with onlooker(database.conninfo) as seen:
            asked = "SELECT max(backend_start) FROM pg_stat_activity WHERE application_name = 'observer'"
            observer.run_once()
            first = seen.ask(asked)
            observer.run_once()
            assert seen.ask(asked) == first


def test_the_page_has_a_budget_of_its_own(rows: Rows, database: Database) -> None:
    """A query of the status page ends after a tenth of a second, whatever the gauges may take, and the next works."""
    with observing(database, budget_ms=60_000) as observer:
        with (
            rows.held("LOCK TABLE flow_run_controls"),
            pytest.raises(sqlalchemy.exc.OperationalError) as raised,
        ):
            observer.look_closer(runs=True)
        assert state_of(raised.value) is DatabaseState.STATEMENT_TIMEOUT
        assert len(observer.look_closer(runs=True).falls_due) == 60
        assert observer.run_once().overdue == 0


def test_a_slow_query_of_the_page_keeps_the_connection_and_its_name(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is dialled again; the name that went back with the transaction is given again."""
    asked = "SELECT application_name, pid FROM pg_stat_activity WHERE application_name ~ '^(observer|named)$'"
    with observing(database, budget_ms=60_000, name="named") as observer, onlooker(database.conninfo) as seen:
        with monkeypatch.context() as slow:
            slow.setattr(module, "daemon_sessions", lambda conn, limit: conn.execute(text(f"SELECT pg_sleep({limit})")))
            with pytest.raises(sqlalchemy.exc.OperationalError):
                observer.look_closer(runs=True)
        ((name, pid),) = seen.rows(asked)
        assert name == "observer"
        observer.look_closer(runs=True)
        assert seen.rows(asked) == [("named", pid)]


def test_another_engine_that_moves_in_is_noticed(rows: Rows, database: Database) -> None:
    """The connection was admitted long ago; every look asks again."""
    with observing(database) as observer:
        observer.run_once()
        rows.sql("CREATE TABLE flow_runs (id uuid)")
        with pytest.raises(DatabaseRefusal) as raised:
            observer.run_once()
    assert raised.value.state is DatabaseState.UPSTREAM_ENGINE
