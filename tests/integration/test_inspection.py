"""Looking without touching: facts of the server, rights, orphaned keys and the plan of the claim."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

import pytest
from sqlalchemy import Connection

from curfew_store import inspection
from curfew_store.observation import Gauges, PageBounds, observe
from curfew_store.schema import tables_in
from tests.conftest import Database
from tests.integration.contract.rows import FLOW, OTHER_FLOW, STATES, Rows

TABLES = tables_in("public")


def test_nothing_here_writes_or_locks(rows: Rows, database: Database) -> None:
    """Every look works in a read-only transaction beside a session that holds all rows."""
    rows.insert("overdue")
    with rows.held("SELECT 1 FROM flow_run_controls FOR UPDATE"), database.engine.connect() as plain:
        conn = plain.execution_options(postgresql_readonly=True)
        observe(conn, TABLES, bound=10, page=PageBounds(minutes=2, per_minute=2, runs=2, daemons=2))
        inspection.planned_flows(conn, TABLES, within=timedelta(hours=1))
        inspection.server_facts(conn)
        inspection.missing_rights(conn, TABLES)
        inspection.keys_without_record(conn, TABLES, older_than=timedelta(0), bound=10)
        inspection.has_upstream_engine(conn, TABLES)
        assert inspection.claim_uses_index(conn, TABLES)[0]


def test_facts_are_those_of_this_very_session(rows: Rows, conn: Connection) -> None:
    """Version, role, clock and the settings in force here, timeouts in milliseconds."""
    plain = inspection.server_facts(conn)
    conn.exec_driver_sql(
        "SET statement_timeout = '3s'; SET lock_timeout = 20; SET idle_in_transaction_session_timeout = '1min';"
        "SET default_transaction_isolation = 'serializable'; SET synchronous_commit = local;"
        "SET TimeZone = 'Asia/Tokyo'"
    )
    facts = inspection.server_facts(conn)
    assert facts.version >= 140000
    assert (facts.role, facts.recovery, facts.read_only) == ("postgres", False, False)
    assert (facts.statement_timeout, facts.lock_timeout, facts.idle_in_transaction_timeout) == (3000, 20, 60000)
    assert (facts.isolation, facts.synchronous_commit) == ("serializable", "local")
    assert timedelta(0) <= facts.clock - plain.clock < timedelta(minutes=1)


def test_a_plan_counts_what_a_sweep_would_mark_per_flow(rows: Rows, conn: Connection) -> None:
    """Overdue now and due within the reach, most first; other states do not count."""
    for state in STATES:
        rows.insert(state)
    for minutes in (5, 10, 600):
        rows.insert(flow_id=f"'{OTHER_FLOW}'", timeout_at_utc=f"now() + interval '{minutes} minutes'")
    rows.insert("overdue", flow_id=f"'{OTHER_FLOW}'")

    now = inspection.planned_flows(conn, TABLES)
    assert {(flow.flow_id, flow.overdue, flow.due_later) for flow in now} == {(FLOW, 1, 0), (OTHER_FLOW, 1, 0)}

    later = inspection.planned_flows(conn, TABLES, within=timedelta(minutes=30))
    assert [(flow.flow_id, flow.overdue, flow.due_later) for flow in later] == [(OTHER_FLOW, 1, 2), (FLOW, 1, 0)]
    assert later[0].latest - later[0].earliest == pytest.approx(timedelta(minutes=11), abs=timedelta(seconds=30))


def test_rights_that_are_missing_are_named_as_grants(rows: Rows, database: Database) -> None:
    """Each grant that is named and given makes the list shorter, until the role may enforce."""
    role = f"weak_{database.name}"
    rows.sql(f"CREATE ROLE {role}")
    try:
        with database.engine.connect() as plain:
            conn = plain.execution_options(isolation_level="AUTOCOMMIT")
            conn.exec_driver_sql(f"SET ROLE {role}")
            missing = inspection.missing_rights(conn, TABLES)
            assert len(missing) == 6
            while missing:
                rows.sql(f"GRANT {missing[0]} TO {role}")
                left = inspection.missing_rights(conn, TABLES)
                assert left == missing[1:]
                missing = left
    finally:
        rows.sql(f"DROP OWNED BY {role}")
        rows.sql(f"DROP ROLE {role}")


def test_keys_that_point_nowhere_are_counted_up_to_a_bound(rows: Rows, conn: Connection) -> None:
    """Only keys older than the grace period without a record; the count stops at its bound."""
    started = rows.insert()
    rows.insert_key(started, "good", created="now() - interval '2 hours'")
    rows.insert_key(uuid4(), "young")
    for n in range(3):
        rows.insert_key(uuid4(), f"orphan {n}", created="now() - interval '2 hours'")
    for bound, count in ((10, 3), (2, 2)):
        found = inspection.keys_without_record(conn, TABLES, older_than=timedelta(hours=1), bound=bound)
        assert found == count


def test_the_claim_is_planned_on_its_index_or_its_plan_is_shown(rows: Rows, conn: Connection) -> None:
    """Without the index the answer is no, with the plan that would be run."""
    assert inspection.claim_uses_index(conn, TABLES)[0]
    rows.sql("DROP INDEX ix_flow_run_controls_armed")
    indexed, plan = inspection.claim_uses_index(conn, TABLES)
    assert not indexed
    assert "flow_run_controls" in plan


def test_another_engine_is_told_by_its_table_of_runs(rows: Rows, conn: Connection) -> None:
    """In this schema, and in no other."""
    rows.sql("CREATE SCHEMA elsewhere")
    rows.sql("CREATE TABLE elsewhere.flow_runs ()")
    assert not inspection.has_upstream_engine(conn, TABLES)
    rows.sql("CREATE TABLE flow_runs ()")
    assert inspection.has_upstream_engine(conn, TABLES)


# Gauges


def test_gauges_tell_overdue_from_still_to_come(rows: Rows, conn: Connection) -> None:
    """Whatever is latched or has no deadline counts for neither; ages run from the earliest of each kind."""
    nothing = observe(conn, TABLES, bound=10).gauges
    assert nothing == Gauges(0, False, None, 0, False, None)
    for state in STATES:
        rows.insert(state)  # one overdue for a minute, one due in an hour
    for minutes in (-30, -2, 20, 90, 600):
        rows.insert(timeout_at_utc=f"now() + interval '{minutes} minutes'")
    found = observe(conn, TABLES, bound=10).gauges
    assert (found.overdue, found.armed) == (3, 4)
    assert (found.overdue_capped, found.armed_capped) == (False, False)
    assert found.oldest_overdue_age == pytest.approx(30 * 60, abs=50)
    assert found.next_due_in == pytest.approx(20 * 60, abs=50)


def test_gauges_are_counted_to_the_bound(rows: Rows, conn: Connection) -> None:
    """Exact at the bound, capped beyond it, each by itself."""
    for minutes in (-1, -2, 10, 20, 30):
        rows.insert(timeout_at_utc=f"now() + interval '{minutes} minutes'")
    found = [observe(conn, TABLES, bound=bound).gauges for bound in (1, 2, 3)]
    assert [(each.overdue, each.overdue_capped) for each in found] == [(1, True), (2, False), (2, False)]
    assert [(each.armed, each.armed_capped) for each in found] == [(1, True), (2, True), (3, False)]


def test_the_edge_of_the_gauges_is_now(database: Database) -> None:
    """A deadline equal to now is overdue, for no time at all, and not still to come; a plan has it, too."""
    with database.engine.begin() as transaction:  # its now() stands still
        transaction.exec_driver_sql(
            "INSERT INTO flow_run_controls (run_id, timeout_at_utc) SELECT gen_random_uuid(), now()"
        )
        assert observe(transaction, TABLES, bound=9).gauges == Gauges(1, False, 0.0, 0, False, None)
        assert [(flow.overdue, flow.due_later) for flow in inspection.planned_flows(transaction, TABLES)] == [(1, 0)]


def test_infinite_deadlines_are_a_century_away(rows: Rows, conn: Connection) -> None:
    """Another writer may have set them; they have an age and a distance all the same."""
    rows.insert(timeout_at_utc="'-infinity'")
    rows.insert(timeout_at_utc="'infinity'")
    found = observe(conn, TABLES, bound=9).gauges
    century = timedelta(days=36_525).total_seconds()
    assert found.oldest_overdue_age == pytest.approx(century, abs=3 * 86_400)
    assert found.next_due_in == pytest.approx(century, abs=3 * 86_400)


def test_a_plan_without_a_reach_ends_now(database: Database) -> None:
    """What is due in a moment is not in it."""
    with database.engine.begin() as transaction:
        transaction.exec_driver_sql(
            "INSERT INTO flow_run_controls (run_id, timeout_at_utc)"
            " SELECT gen_random_uuid(), now() + interval '100 milliseconds'"
        )
        assert inspection.planned_flows(transaction, TABLES) == []
        within = inspection.planned_flows(transaction, TABLES, within=timedelta(seconds=0.1))
        assert [(flow.overdue, flow.due_later) for flow in within] == [(0, 1)]
