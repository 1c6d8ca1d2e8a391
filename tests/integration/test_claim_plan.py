"""The plan and the pace of the claim, whatever the statistics say of the table."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Connection, create_engine
from sqlalchemy.pool import NullPool

from curfew_store.enforcement import (
    OVERDUE_REASON,
    claim_overdue,
    claim_statement,
    look_ahead,
    look_ahead_statement,
)
from curfew_store.records import ClaimedRun
from curfew_store.schema import ARMED_INDEX, tables_in
from curfew_store.testing import DatabaseTemplate

TABLES = tables_in("public")
CURSOR = {
    "after_deadline": datetime(2020, 1, 1, tzinfo=UTC),
    "after_run_id": UUID("88888888-8888-4888-8888-888888888888"),
}

_FILL_DUE = """
INSERT INTO flow_run_controls (run_id, flow_id, trigger_key, timeout_at_utc)
SELECT gen_random_uuid(), gen_random_uuid(), 'trigger', now() - interval '1 day' + n * interval '100 ms'
FROM generate_series(1, {rows}) n
"""
_FILL_OTHERS = """
INSERT INTO flow_run_controls (run_id, trigger_key, timeout_at_utc, cancel_requested, completed_at_utc)
SELECT gen_random_uuid(), 'trigger',
    CASE WHEN n % 5 > 0 THEN now() + (n - {rows} / 2) * interval '1 s' END,
    n % 4 = 0, CASE WHEN n % 4 = 1 THEN now() END
FROM generate_series(1, {rows}) n
"""

_TABLE = "flow_run_controls"
# What happens to a fresh table, in order, before the plan is looked at.
STATES = {
    "empty": [],
    "due, never analysed": [_FILL_DUE],
    "due, analysed when empty": [f"ANALYZE {_TABLE}", _FILL_DUE],
    "due, analysed": [_FILL_DUE, f"VACUUM ANALYZE {_TABLE}"],
    "mixed, never analysed": [_FILL_OTHERS],
    "mixed, analysed": [_FILL_OTHERS, f"VACUUM ANALYZE {_TABLE}"],
    "nothing due, analysed": [
        _FILL_OTHERS,
        f"UPDATE {_TABLE} SET completed_at_utc = now()",
        f"VACUUM ANALYZE {_TABLE}",
    ],
    "due, analysed when nothing was": [
        _FILL_OTHERS,
        f"UPDATE {_TABLE} SET completed_at_utc = now()",
        f"VACUUM ANALYZE {_TABLE}",
        _FILL_DUE,
    ],
    "nothing due, analysed when all were": [
        _FILL_DUE,
        f"VACUUM ANALYZE {_TABLE}",
        f"UPDATE {_TABLE} SET timed_out_at_utc = now()",
    ],
}


@pytest.fixture(scope="module")
def connection(curfew_database: DatabaseTemplate) -> Iterator[Connection]:
    """A session in autocommit on a database in which autovacuum never gathers statistics."""
    name = curfew_database.create()
    engine = create_engine(curfew_database.server.sqlalchemy_url(name), poolclass=NullPool)
    with engine.connect() as plain:
        conn = plain.execution_options(isolation_level="AUTOCOMMIT")
        yield conn
    engine.dispose()
    curfew_database.drop(name)


def _in_state(conn: Connection, state: str, rows: int) -> None:
    """Make a table in one state; as new as after a migration, so no statistics of an earlier one remain."""
    conn.exec_driver_sql("CREATE TABLE IF NOT EXISTS pristine (LIKE flow_run_controls INCLUDING ALL)")
    conn.exec_driver_sql("ALTER TABLE flow_run_controls RENAME TO used")
    conn.exec_driver_sql("DROP TABLE used")
    conn.exec_driver_sql("CREATE TABLE flow_run_controls (LIKE pristine INCLUDING ALL)")
    conn.exec_driver_sql("ALTER TABLE flow_run_controls SET (autovacuum_enabled = false)")
    names = conn.exec_driver_sql("SELECT indexname FROM pg_indexes WHERE tablename = 'flow_run_controls'").scalars()
    for name in names.all():
        if "timeout_at_utc" in name:
            conn.exec_driver_sql(f'ALTER INDEX "{name}" RENAME TO {ARMED_INDEX}')
    for statement in STATES[state]:
        conn.exec_driver_sql(statement.format(rows=rows).replace("%", "%%"))


def statements() -> dict[str, tuple[Any, dict[str, Any]]]:
    return {
        "claim": (claim_statement(TABLES, continued=False), {"limit": 500}),
        "continued claim": (claim_statement(TABLES, continued=True), {"limit": 500, **CURSOR}),
        "look ahead": (look_ahead_statement(TABLES), {}),
    }


def explained(conn: Connection, statement: Any, parameters: dict[str, Any]) -> dict[str, Any]:
    """The plan of the statement exactly as SQLAlchemy compiles and sends it."""
    compiled = statement.compile(dialect=conn.dialect)
    sql = f"EXPLAIN (FORMAT JSON) {compiled}"
    plan: dict[str, Any] = conn.exec_driver_sql(sql, compiled.construct_params(parameters)).scalar_one()[0]["Plan"]
    return plan


def nodes_of(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes_of(child)


def _assert_indexed(plan: dict[str, Any], what: str, *, empty: bool = False) -> None:
    """The armed index is read, the rest is looked up by key, and nothing reads or sorts the table as a whole.

    The ids of an empty table may be looked up by reading all its no pages.
    """
    nodes = list(nodes_of(plan))
    assert ARMED_INDEX in {node.get("Index Name") for node in nodes}, f"{what} reads no armed index: {plan}"
    kinds = {node["Node Type"] for node in nodes if node.get("Relation Name") == _TABLE or "Sort" in node["Node Type"]}
    kinds -= {"ModifyTable", "LockRows", *(["Seq Scan"] if empty else [])}
    assert kinds <= {"Index Scan", "Index Only Scan", "Bitmap Heap Scan"}, f"{what}: {kinds}: {plan}"
    for bitmap in (node for node in nodes if node["Node Type"] == "Bitmap Index Scan"):
        assert "run_id = ANY" in bitmap["Index Cond"], f"{what}: {plan}"


@pytest.mark.contract("E-4")
@pytest.mark.parametrize("state", STATES)
def test_the_plan_reads_the_armed_index_whatever_the_statistics_say(connection: Connection, state: str) -> None:
    """Claim, continued claim and look-ahead read the partial index in order, with no scan or sort of the table."""
    _in_state(connection, state, rows=30_000)
    for what, (statement, parameters) in statements().items():
        _assert_indexed(explained(connection, statement, parameters), what, empty=state == "empty")


@pytest.mark.contract("E-4")
@pytest.mark.parametrize("state", ["due, never analysed", "due, analysed"])
def test_the_claim_marks_500_of_100_000_within_50_ms(connection: Connection, state: str) -> None:
    """The median of 60 batches stays under the bound, half of them by the cursor, half with all marks before them."""
    _in_state(connection, state, rows=100_000)
    seconds: list[float] = []
    last: ClaimedRun | None = None
    for number in range(60):
        begin = time.perf_counter()
        batch = claim_overdue(connection, TABLES, limit=500, after=last)
        seconds.append(time.perf_counter() - begin)
        assert len(batch) == 500
        last = batch[-1] if number < 30 else None
    assert statistics.median(seconds) < 0.050, f"slowest {max(seconds):.3f} s"
    for what, (statement, parameters) in statements().items():
        _assert_indexed(explained(connection, statement, parameters), what)


@pytest.mark.contract("E-4")
def test_a_prepared_claim_keeps_the_index_in_its_generic_plan(connection: Connection) -> None:
    """Where a driver prepares statements, the plan that the server settles on after 20 runs reads the index."""
    _in_state(connection, "due, never analysed", rows=30_000)
    with connection.engine.connect() as plain:
        conn = plain.execution_options(isolation_level="AUTOCOMMIT")
        driver: Any = conn.connection.driver_connection
        driver.prepare_threshold = 0
        for _ in range(20):
            assert len(claim_overdue(conn, TABLES, limit=50)) == 50
            look_ahead(conn, TABLES)
        conn.exec_driver_sql("SET plan_cache_mode = force_generic_plan")
        prepared = conn.exec_driver_sql(
            "SELECT name, cardinality(parameter_types) FROM pg_prepared_statements "
            "WHERE statement LIKE '%%flow_run_controls%%' AND generic_plans + custom_plans = 20"
        ).all()
        assert len(prepared) == 2
        for name, parameters in prepared:
            values = f"('500', '{OVERDUE_REASON}')" if parameters == 2 else ""
            for_claim = conn.exec_driver_sql(f"EXPLAIN (FORMAT JSON) EXECUTE {name}{values}").scalar_one()
            _assert_indexed(for_claim[0]["Plan"], name)
