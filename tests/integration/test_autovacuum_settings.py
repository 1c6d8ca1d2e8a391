"""The revision that sets autovacuum parameters: on a schema of the release before, around an operator's own."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import Engine

from curfew_store import FlowRunControlStore
from curfew_store import migrate as migrate_module
from curfew_store.migrate import upgrade
from curfew_store.migrations import steps
from curfew_store.version import LATEST
from tests.conftest import Database
from tests.integration.shapes import MIGRATED, shape_of

OURS = MIGRATED["parameters"]["flow_run_controls"]
PARAMETERS = (
    "SELECT relname, reloptions FROM pg_class WHERE relname LIKE 'flow_run_controls%%' AND relkind IN ('r', 'p')"
)


@pytest.fixture
def before(database: Database) -> Engine:
    """A schema as the first revision left it."""
    with database.engine.begin() as conn:
        conn.exec_driver_sql("UPDATE curfew_schema_version SET version_num = '0001'")
        conn.exec_driver_sql(
            "ALTER TABLE flow_run_controls RESET (autovacuum_vacuum_scale_factor, autovacuum_vacuum_threshold)"
        )
    return database.engine


def parameters(engine: Engine) -> dict[str, Any]:
    """The storage parameters of the control table and of what it consists of."""
    with engine.connect() as conn:
        return {str(name): options for name, options in conn.exec_driver_sql(PARAMETERS)}


@pytest.mark.contract("Z-6")
def test_the_release_serves_the_revision_before(before: Engine) -> None:
    """Nothing needs the parameters: a store works on a schema that has not been migrated yet."""
    assert parameters(before) == {"flow_run_controls": None}
    started = FlowRunControlStore(before).start_run(uuid4(), "t")
    assert FlowRunControlStore(before).complete_run(started.run_id)


def test_the_parameters_are_set_beside_the_traffic(
    before: Engine, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Open transactions that read and write are not waited for."""
    monkeypatch.setattr(migrate_module, "DDL_LOCK_TIMEOUT", "20ms")
    monkeypatch.setattr(steps, "LOCK_ATTEMPTS", 1)
    with psycopg.connect(database.conninfo) as holder:
        holder.execute("INSERT INTO flow_run_controls (run_id) SELECT gen_random_uuid()")
        holder.execute("SELECT run_id FROM flow_run_controls FOR UPDATE")
        assert upgrade(before) == ("0001", LATEST)
    assert shape_of(before) == MIGRATED


@pytest.mark.parametrize("own", ["autovacuum_vacuum_scale_factor=0.5", "autovacuum_vacuum_threshold=7"])
def test_parameters_of_an_operator_stay(before: Engine, own: str) -> None:
    """Whoever has set one of them has thought about both, so neither is touched."""
    with before.begin() as conn:
        conn.exec_driver_sql(f"ALTER TABLE flow_run_controls SET ({own}, fillfactor=90)")
    assert upgrade(before) == ("0001", LATEST)
    assert sorted(parameters(before)["flow_run_controls"]) == sorted([own, "fillfactor=90"])


def test_partitions_get_the_parameters(before: Engine) -> None:
    """A partitioned table cannot have them; each of its partitions does, but for one that has its own."""
    with before.begin() as conn:
        conn.exec_driver_sql("ALTER TABLE flow_run_controls RENAME TO plain")
        conn.exec_driver_sql("DROP INDEX ix_flow_run_controls_armed")
        conn.exec_driver_sql(
            "CREATE TABLE flow_run_controls (LIKE plain INCLUDING DEFAULTS) PARTITION BY HASH (run_id)"
        )
        conn.exec_driver_sql("ALTER TABLE flow_run_controls ADD PRIMARY KEY (run_id)")
        for number in range(2):
            conn.exec_driver_sql(
                f'CREATE TABLE "flow_run_controls {number}" PARTITION OF flow_run_controls '
                f"FOR VALUES WITH (MODULUS 2, REMAINDER {number})"
            )
        conn.exec_driver_sql('ALTER TABLE "flow_run_controls 1" SET (autovacuum_vacuum_threshold=7)')
    assert upgrade(before) == ("0001", LATEST)
    assert parameters(before) == {
        "flow_run_controls": None,
        "flow_run_controls 0": OURS,
        "flow_run_controls 1": ["autovacuum_vacuum_threshold=7"],
    }
