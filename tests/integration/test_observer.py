"""The gauges: counted without a lock, within a bound and a budget, through a connection of their own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import sqlalchemy.exc
from psycopg.conninfo import make_conninfo
from sqlalchemy import Connection, event

from curfew_daemon import observer as module
from curfew_daemon.database import Link
from curfew_daemon.failures import DatabaseRefusal, state_of
from curfew_daemon.observer import Observer
from curfew_daemon.results import DatabaseState, Observation
from curfew_store.observation import Observed, PageBounds, observe
from curfew_store.schema import Tables, tables_in
from tests.conftest import Database
from tests.integration.contract.rows import STATES, Rows
from tests.integration.sessions import onlooker

TABLES = tables_in("public")


@contextmanager
def observing(
    database: Database,
    budget_ms: int = 5000,
    name: str | None = None,
    clock: Callable[[], float] = time.monotonic,
    answer_timeout: float = 20,
) -> Iterator[Observer]:
    link = Link(
        TABLES,
        lambda: make_conninfo(database.conninfo),
        application_name="observer",
        options={"statement_timeout": str(budget_ms)},
        connect_timeout=10,
        longest_dial=20,
        answer_timeout=answer_timeout,
    )
    observer = Observer(TABLES, link, name=None if name is None else lambda: name, clock=clock)
    try:
        yield observer
    finally:
        observer.close()


def look(observer: Observer) -> Observation:
    return observer.run_once(runs=False).gauges


def test_an_empty_table(database: Database) -> None:
    """Nothing overdue, nothing armed, nothing ahead."""
    with observing(database) as observer:
        seen = look(observer)
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
        seen = look(observer)
    assert (seen.overdue, seen.armed) == (2, 2)
    assert seen.oldest_overdue_age == pytest.approx(90, abs=30)
    assert seen.next_due_in == pytest.approx(50, abs=30)
    assert rows.everything() == before


def test_runs_that_others_hold_are_seen(rows: Rows, database: Database) -> None:
    """What a claim passes over is overdue all the same, and looking at it waits for nobody."""
    run = rows.insert("overdue")
    hold = rows.held("SELECT 1 FROM flow_run_controls WHERE run_id = :run FOR UPDATE", run=run)
    with hold, observing(database, budget_ms=2000) as observer:
        assert look(observer).overdue == 1


def test_odd_deadlines_have_an_age(rows: Rows, database: Database) -> None:
    """Infinite deadlines break no gauge: minus infinity is a century old, infinity a century ahead."""
    rows.insert(timeout_at_utc="'-infinity'")
    rows.insert(timeout_at_utc="'infinity'")
    with observing(database) as observer:
        seen = look(observer)
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
            seen = look(observer)
            assert (seen.overdue, seen.overdue_capped) == (count, capped), number
            assert (seen.armed, seen.armed_capped) == (count, capped), number


def test_the_budget_ends_a_look_and_the_next_one_has_a_new_connection(rows: Rows, database: Database) -> None:
    """A table that is locked costs the budget, not more; the failure is raised and forgotten."""
    with observing(database, budget_ms=200) as observer:
        look(observer)
        locked = rows.held("LOCK TABLE flow_run_controls")
        with locked, pytest.raises(sqlalchemy.exc.OperationalError) as raised:
            look(observer)
        assert state_of(raised.value) is DatabaseState.STATEMENT_TIMEOUT
        with onlooker(database.conninfo) as seen:
            asked = "SELECT max(backend_start) FROM pg_stat_activity WHERE application_name = 'observer'"
            look(observer)
            first = seen.ask(asked)
            look(observer)
            assert seen.ask(asked) == first


def asking(monkeypatch: pytest.MonkeyPatch, slow: str) -> list[bool]:
    """From now on a reading of the whole does *slow* first; the list tells of each statement whether it was whole."""
    asked: list[bool] = []

    def observing(conn: Connection, tables: Tables, *, bound: int, page: PageBounds | None = None) -> Observed:
        asked.append(page is not None)
        if page is not None:
            conn.exec_driver_sql(slow)
        return observe(conn, tables, bound=bound, page=page)

    monkeypatch.setattr(module, "observe", observing)
    return asked


def test_a_reading_is_one_statement(database: Database) -> None:
    """Also of all that the page shows; only a new connection costs more."""
    with observing(database, name="named") as observer:
        assert observer.run_once(runs=True).table is not None
        statements: list[str] = []
        conn = observer._link.connection()
        event.listen(conn, "before_cursor_execute", lambda _c, _cursor, statement, *_: statements.append(statement))
        assert observer.run_once(runs=True).table is not None
        assert len(statements) == 1


def test_the_gauges_come_alone_where_the_whole_takes_too_long(
    rows: Rows, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No failure; for a minute nothing else is tried, on the same connection, which keeps its name."""
    rows.insert("active")
    asked = asking(monkeypatch, "SELECT pg_sleep(9)")
    clock = [0.0]
    sessions = "SELECT application_name, pid FROM pg_stat_activity WHERE application_name ~ '^(observer|named)$'"
    with observing(database, budget_ms=200, name="named", clock=lambda: clock[0]) as observer:
        reading = observer.run_once(runs=True)
        assert (reading.gauges.armed, reading.table) == (1, None)
        assert reading.error is not None
        assert state_of(reading.error) is DatabaseState.STATEMENT_TIMEOUT
        with onlooker(database.conninfo) as seen:
            ((name, pid),) = seen.rows(sessions)
            assert name == "named"
            clock[0] = module.WITHOUT_PAGE - 1
            reading = observer.run_once(runs=True)
            assert (reading.gauges.armed, reading.table, reading.error) == (1, None, None)
            assert asked == [True, False, False]
            monkeypatch.undo()
            clock[0] += 1
            assert observer.run_once(runs=True).table is not None
            assert seen.rows(sessions) == [("named", pid)]


def test_a_connection_that_ends_in_the_middle_costs_one_reading(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a failure, and the next reading is whole: the page was not to blame."""
    with observing(database) as observer:
        with monkeypatch.context() as broken:
            asking(broken, "SELECT pg_terminate_backend(pg_backend_pid())")
            with pytest.raises(sqlalchemy.exc.OperationalError):
                observer.run_once(runs=True)
        assert observer.run_once(runs=True).table is not None


def test_a_whole_that_the_server_does_not_bound_is_not_asked_for_again(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a pooler that dropped the options the client's patience ends first; then the gauges are to be had."""
    with observing(database, budget_ms=0, answer_timeout=0.5) as observer:
        asked = asking(monkeypatch, "SELECT pg_sleep(9)")
        with pytest.raises(sqlalchemy.exc.OperationalError, match="no answer"):
            observer.run_once(runs=True)
        assert observer.run_once(runs=True).table is None
        assert asked == [True, False]


def test_another_engine_that_moves_in_is_noticed(rows: Rows, database: Database) -> None:
    """The connection was admitted long ago; every look asks again."""
    with observing(database) as observer:
        look(observer)
        rows.sql("CREATE TABLE flow_runs (id uuid)")
        with pytest.raises(DatabaseRefusal) as raised:
            look(observer)
    assert raised.value.state is DatabaseState.UPSTREAM_ENGINE
