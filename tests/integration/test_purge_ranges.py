"""A statement of the daemon's purge keeps to the pages that it is given."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import Connection, text

from curfew_store.retention import PageRange, purge_ended_runs, purge_orphaned_keys
from curfew_store.schema import tables_in
from tests.conftest import Database

TABLES = tables_in("public")
HOUR = timedelta(hours=1)

# Some hundred rows of each kind fill a few pages of 8 KiB.
_OLD = """
INSERT INTO flow_run_controls (run_id, completed_at_utc)
    SELECT gen_random_uuid(), now() - interval '2 hours' FROM generate_series(1, 500);
INSERT INTO flow_idempotency_keys (flow_id, trigger_key, idempotency_key, run_id, created_at_utc)
    SELECT gen_random_uuid(), 't', 'orphan ' || n, gen_random_uuid(), now() - interval '2 hours'
    FROM generate_series(1, 500) n
"""


def _per_page(conn: Connection, table: str) -> list[int]:
    """How many rows stand on each page of a table, from its first to its last with any."""
    page = "(ctid::text::point)[0]::integer"
    found = conn.execute(text(f"SELECT {page}, count(*) FROM {table} GROUP BY 1 ORDER BY 1")).all()
    counts = {int(number): int(count) for number, count in found}
    return [counts.get(number, 0) for number in range(max(counts) + 1)]


@pytest.mark.parametrize("kind", ["runs", "keys"])
def test_what_lies_before_or_behind_the_pages_stays(database: Database, kind: str) -> None:
    """Of a table full of what is old, only the pages from the first to the one before the end lose their rows."""
    table = "flow_run_controls" if kind == "runs" else "flow_idempotency_keys"
    purge = purge_ended_runs if kind == "runs" else purge_orphaned_keys
    with database.engine.connect() as plain:
        conn = plain.execution_options(isolation_level="AUTOCOMMIT")
        conn.exec_driver_sql(_OLD)
        before = _per_page(conn, table)
        assert len(before) > 3
        purged = purge(conn, TABLES, PageRange(1, 3), older_than=HOUR, limit=10_000)
        assert purged.rows == before[1] + before[2]
        assert _per_page(conn, table) == [before[0], 0, 0, *before[3:]]
