"""What the status page asks: right in every state of the runs, on the index, bounded, and through a real daemon."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import timedelta
from importlib.metadata import version
from typing import Any
from unittest.mock import ANY

import psycopg
import pytest
from sqlalchemy import Connection, create_engine
from sqlalchemy.pool import NullPool

from curfew_daemon.links import make_link
from curfew_daemon.observer import Observer
from curfew_store.daemon_sessions import DaemonSessions, daemon_sessions_statement, is_pooled, publish, session_name
from curfew_store.observation import Page, PageBounds, observe, observe_statement
from curfew_store.schema import ARMED_INDEX, tables_in
from curfew_store.status_queries import DueMinute, OverdueRun
from curfew_store.testing import DatabaseTemplate
from tests.conftest import Database
from tests.e2e.daemon_process import DaemonProcess
from tests.integration.contract.rows import FLOW, STATES, Rows
from tests.integration.sessions import eventually
from tests.integration.settings import settings_for

TABLES = tables_in("public")
BUDGET = 0.5


def page(conn: Connection, *, minutes: int = 1, per_minute: int = 1, runs: int = 0, daemons: int = 0) -> Page:
    seen = observe(conn, TABLES, bound=1, page=PageBounds(minutes, per_minute, runs, daemons)).page
    assert seen is not None
    return seen


def due_per_minute(conn: Connection, *, minutes: int, bound: int) -> tuple[DueMinute, ...]:
    return page(conn, minutes=minutes, per_minute=bound).falls_due


def longest_overdue(conn: Connection, *, limit: int) -> tuple[OverdueRun, ...]:
    return page(conn, runs=limit).overdue


def daemon_sessions(conn: Connection, *, limit: int) -> list[DaemonSessions]:
    return [DaemonSessions(*row) for row in conn.execute(daemon_sessions_statement(), {"daemons": limit})]


# What falls due


def test_runs_are_counted_in_the_minute_in_which_they_fall_due(rows: Rows, conn: Connection) -> None:
    """From now on, an edge belonging to the earlier minute; nothing that will not be marked."""
    for state in STATES:
        rows.insert(state)  # the active one falls due in an hour and a moment, seen from here
    for seconds in (30, 90, 100, 3590):
        rows.insert(timeout_at_utc=f"now() + interval '{seconds} seconds'")
    rows.insert(timeout_at_utc="'infinity'")
    counts = [minute.count for minute in due_per_minute(conn, minutes=59, bound=10)]
    assert (len(counts), counts[0], counts[1], sum(counts)) == (59, 1, 2, 3)
    assert sum(minute.count for minute in due_per_minute(conn, minutes=60, bound=10)) == 5


def test_the_edge_of_a_minute(rows: Rows, conn: Connection) -> None:
    """A deadline at now is overdue and not to come; one a whole minute ahead is in the first minute."""
    with conn.engine.begin() as transaction:  # its now() stands still
        transaction.exec_driver_sql(
            "INSERT INTO flow_run_controls (run_id, timeout_at_utc) SELECT gen_random_uuid(), now() + n * interval"
            " '1 minute' FROM generate_series(0, 3) n"
        )
        assert [minute.count for minute in due_per_minute(transaction, minutes=3, bound=9)] == [1, 1, 1]
        assert len(longest_overdue(transaction, limit=9)) == 1


def test_a_minute_is_counted_to_the_bound(rows: Rows, conn: Connection) -> None:
    """Exact at the bound, capped beyond it, each minute by itself."""
    for seconds in (10, 20, 30, 70, 80):
        rows.insert(timeout_at_utc=f"now() + interval '{seconds} seconds'")
    found = due_per_minute(conn, minutes=2, bound=2)
    assert [(minute.count, minute.capped) for minute in found] == [(2, True), (2, False)]


# What is overdue


def test_the_longest_overdue_come_first(rows: Rows, conn: Connection) -> None:
    """Those that a sweep would mark, held by others or not, with how late they are by the server's clock."""
    for state in STATES:
        rows.insert(state)
    oldest = rows.insert("overdue", timeout_at_utc="now() - interval '2 hours'")
    rows.insert("overdue", timeout_at_utc="now() - interval '1 second'")
    before = rows.everything()
    with rows.held("SELECT 1 FROM flow_run_controls FOR UPDATE"):
        found = longest_overdue(conn, limit=2)
    assert [run.run_id == oldest for run in found] == [True, False]
    assert found[0].flow_id == FLOW
    assert [run.late for run in found] == pytest.approx([7200, 60], abs=30)
    assert found[0].deadline.utcoffset() == timedelta(0)
    assert rows.everything() == before


def test_an_infinitely_old_deadline(rows: Rows, conn: Connection) -> None:
    """It is a century late and breaks nothing."""
    rows.insert(timeout_at_utc="'-infinity'")
    (run,) = longest_overdue(conn, limit=5)
    assert run.late == pytest.approx(100 * 365.25 * 86400, rel=0.01)
    assert run.deadline.year == 1


# Plan and pace

_FILL = """
INSERT INTO flow_run_controls (run_id, flow_id, trigger_key, timeout_at_utc, completed_at_utc)
SELECT gen_random_uuid(), gen_random_uuid(), 'trigger', now() + ({start} + n * {step}) * interval '1 ms',
    CASE WHEN {done} THEN now() END
FROM generate_series(1, 100000) n
"""
_DUE = _FILL.format(start=-86_400_000, step=100, done="false")
_AHEAD = _FILL.format(start=0, step=36, done="false")
_AT_ONCE = _FILL.format(start=90_000, step=0, done="false")
_DONE = _FILL.format(start=-1_800_000, step=36, done="true")
_ANALYZE = "VACUUM ANALYZE flow_run_controls"
CASES = {
    "overdue, never analysed": [_DUE],
    "overdue, analysed": [_DUE, _ANALYZE],
    "ahead, never analysed": [_AHEAD],
    "ahead, analysed": [_AHEAD, _ANALYZE],
    "ahead at once, never analysed": [_AT_ONCE],
    "ahead at once, analysed": [_AT_ONCE, _ANALYZE],
    "all": [_DONE, _DUE, _AHEAD, _ANALYZE],
    "all, analysed when all was done": [_DONE, _ANALYZE, _DUE, _AHEAD],
}


@pytest.fixture(params=CASES, scope="module")
def crowded(request: pytest.FixtureRequest, curfew_database: DatabaseTemplate) -> Iterator[Connection]:
    """A session on a table with 100,000 runs and more, whose statistics nobody gathers by themselves."""
    name = curfew_database.create()
    engine = create_engine(curfew_database.server.sqlalchemy_url(name), poolclass=NullPool)
    with engine.connect() as plain:
        conn = plain.execution_options(isolation_level="AUTOCOMMIT")
        conn.exec_driver_sql("ALTER TABLE flow_run_controls SET (autovacuum_enabled = false)")
        for statement in CASES[request.param]:
            conn.exec_driver_sql(statement)
        yield conn
    engine.dispose()
    curfew_database.drop(name)


def test_the_index_of_armed_deadlines_is_used(crowded: Connection) -> None:
    """Whatever the statistics say; and the table is never read whole."""
    compiled = observe_statement(TABLES, page=True).compile(dialect=crowded.dialect)
    bounds = {"bound": 10_001, "last": 59, "per_minute": 1001, "runs": 10, "daemons": 10}
    plan = "\n".join(
        crowded.exec_driver_sql(f"EXPLAIN (COSTS OFF) {compiled}", {**compiled.params, **bounds}).scalars()
    )
    assert plan.count(ARMED_INDEX) == 8
    assert "Seq Scan on flow_run_controls" not in plan


def test_it_is_within_its_budget(crowded: Connection) -> None:
    """Half of what it has by default, among 100,000 runs; the best of five, since other work shares the machine."""
    durations = []
    for _ in range(5):
        started = time.perf_counter()
        observe(crowded, TABLES, bound=10_000, page=PageBounds(60, 1000, 10, 10))
        durations.append(time.perf_counter() - started)
    assert min(durations) < BUDGET


# Who else is there


def test_the_page_lists_daemons_by_name_up_to_a_bound(database: Database, conn: Connection) -> None:
    """With what each tells of itself; asked for none, it reads none."""
    names = ("curfewd b:1 v1.2.3 40ms", "curfewd a:1", "curfewd c:1")
    sessions = [psycopg.connect(database.conninfo, application_name=name) for name in names]
    try:
        assert page(conn, daemons=2).daemons == (
            DaemonSessions("a:1", 1, ANY),
            DaemonSessions("b:1", 1, ANY, "1.2.3", 0.04),
        )
        assert page(conn).daemons == ()
    finally:
        for each in sessions:
            each.close()


def test_daemons_are_known_by_the_names_of_their_sessions(database: Database, conn: Connection) -> None:
    """One line per instance of this database; neither other commands nor other programs."""

    def session(name: str, database_name: str = database.name) -> psycopg.Connection[Any]:
        return psycopg.connect(database.conninfo, application_name=name, dbname=database_name)

    names = ("curfewd b:1", "curfewd a:1", "curfewd b:1", "curfewd check a:1", "curfewd", "curfewd ", "xcurfewd c:1")
    open_sessions = [session(name) for name in names] + [session("curfewd elsewhere:1", "postgres")]
    try:
        found = daemon_sessions(conn, limit=10)
        assert [(each.instance, each.sessions) for each in found] == [("a:1", 1), ("b:1", 2)]
        assert all(each.since is not None for each in found)
        assert [each.instance for each in daemon_sessions(conn, limit=1)] == ["a:1"]
    finally:
        for each in open_sessions:
            each.close()


def test_a_session_tells_version_and_slack(database: Database, conn: Connection) -> None:
    """Whatever names end in otherwise tells nothing, and a name that would be cut tells only the instance."""
    sessions = [
        psycopg.connect(database.conninfo, application_name=name)
        for name in ("curfewd a:1", "curfewd b:1 v1.2.3", "curfewd c:1 v1 9999999999ms", "curfewd d:1 v1.2.3 40ms x")
    ]
    try:
        with database.engine.connect() as plain:
            one = plain.execution_options(isolation_level="AUTOCOMMIT")
            publish(one, session_name("a:1", "1.2.3rc1", 0.0405))
            assert daemon_sessions(conn, limit=5)[0] == DaemonSessions("a:1", 2, ANY, "1.2.3rc1", 0.04)
            publish(one, session_name("i" * 54, "1.2.3", 0.04))
            found = daemon_sessions(conn, limit=5)
            assert [(each.instance, each.version, each.slack) for each in found] == [
                ("a:1", None, None),
                ("i" * 54, None, None),
            ]
    finally:
        for each in sessions:
            each.close()


def test_a_role_without_rights_still_sees_the_names(database: Database, rows: Rows) -> None:
    """Only the start of a session that is another role's stays hidden."""
    rows.sql("DROP ROLE IF EXISTS curfew_onlooker")
    rows.sql("CREATE ROLE curfew_onlooker")
    engine = create_engine(database.url, poolclass=NullPool)
    try:
        with psycopg.connect(database.conninfo, application_name="curfewd a:1"), engine.connect() as conn:
            conn.exec_driver_sql("SET ROLE curfew_onlooker")
            assert daemon_sessions(conn, limit=5) == [DaemonSessions("a:1", 1, None)]
    finally:
        rows.sql("DROP ROLE curfew_onlooker")


def test_a_direct_connection_is_not_pooled(conn: Connection) -> None:
    """The process that answers is the one that was announced."""
    assert not is_pooled(conn)


# Through a real daemon


def test_a_daemon_shows_what_it_did_and_what_is_ahead(database: Database, rows: Rows) -> None:
    """Marks from its memory, the rest as its observer read it, both on the page and as JSON."""
    overdue = rows.insert("overdue")
    rows.insert(timeout_at_utc="now() + interval '10 minutes 30 seconds'")
    names: dict[str, Any] = {
        "CURFEW_OBSERVE_INTERVAL": "0.5",
        "CURFEW_OBSERVE_BUDGET": "0.5",
        "CURFEW_INSTANCE": "<one>",
    }
    with DaemonProcess(database.conninfo, **names) as daemon:
        daemon.wait_for("runs_timed_out")

        def document() -> Any:
            return json.loads(daemon.get("/status.json")[1])

        eventually(lambda: (document()["table"] or {}).get("armed", {}).get("count") == 1, "the table is read")
        found = document()
        assert found["verdict"] == "late"  # a minute late when it was found
        assert [run["run_id"] for run in found["timed_out"]["newest"]] == [str(overdue)]
        assert found["timed_out"]["since_start"] == sum(found["timed_out"]["per_minute"]) == 1
        assert found["lag"]["now_s"] == pytest.approx(60, abs=30)
        assert found["table"]["overdue"]["count"] == 0
        assert found["table"]["falls_due"]["per_minute"][10] == 1
        assert [each["instance"] for each in found["table"]["daemons"]] == ["<one>"]
        assert found["table"]["daemons"][0]["version"] == version("curfewd")
        assert found["table"]["daemons"][0]["slack_s"] == 0
        assert str(overdue) in daemon.get("/")[1]
        assert "&lt;one&gt;" in daemon.get("/")[1]


def test_a_daemon_keeps_ids_to_itself_if_told(database: Database, rows: Rows) -> None:
    """CURFEW_STATUS_RUNS=false: counts and pictures stay, no id of a run or flow is on any page."""
    marked = rows.insert("overdue")
    held = rows.insert("overdue")
    hold = rows.held("SELECT 1 FROM flow_run_controls WHERE run_id = :run FOR UPDATE", run=held)
    names: dict[str, Any] = {
        "CURFEW_OBSERVE_INTERVAL": "0.5",
        "CURFEW_OBSERVE_BUDGET": "0.5",
        "CURFEW_STATUS_RUNS": "false",
    }
    with hold, DaemonProcess(database.conninfo, **names) as daemon:
        daemon.wait_for("runs_timed_out")
        daemon.wait_page("/status.json", 200, '"oldest_age_s"')
        pages = daemon.get("/")[1] + daemon.get("/status.json")[1]
    assert '"since_start": 1' in pages
    for each in (marked, held, FLOW):
        assert str(each) not in pages


@pytest.mark.parametrize("runs", [True, False])
def test_ids_are_not_even_read_if_told(database: Database, rows: Rows, runs: bool) -> None:
    """The observer asks for the overdue runs only where they may be shown; what falls due it always reads."""
    rows.insert("overdue")
    settings = settings_for(database)
    observer = Observer(TABLES, make_link(lambda: settings, statement_timeout=5))
    try:
        facts = observer.run_once(runs=runs).table
    finally:
        observer.close()
    assert facts is not None
    assert len(facts.overdue) == runs
    assert len(facts.falls_due) == 60


def test_a_run_that_is_held_is_called_stuck(database: Database, rows: Rows) -> None:
    """Once whole sweeps have passed it over, and no longer once it is free."""
    held = rows.insert("overdue")
    names: dict[str, Any] = {
        "CURFEW_OBSERVE_INTERVAL": "0.5",
        "CURFEW_OBSERVE_BUDGET": "0.5",
        "CURFEW_POLL_INTERVAL": "0.2",
    }
    with DaemonProcess(database.conninfo, **names) as daemon:
        with rows.held("SELECT 1 FROM flow_run_controls WHERE run_id = :run FOR UPDATE", run=held):
            daemon.wait_up()
            daemon.wait_page("/status.json", 200, '"stuck": true')
        daemon.wait_for("runs_timed_out")
        daemon.wait_page("/status.json", 200, '"longest": []')
