"""A database that FlowOrchestrator's own engine uses: nothing is marked there, whatever looks overdue."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from tests.conftest import Database
from tests.e2e.conftest import Table
from tests.e2e.daemon_process import DaemonProcess, curfewd
from tests.integration.upstream import STARTUP_BATCH

FINISHED = 1000
RUNNING = 10


@pytest.fixture
def shared(empty_database: Database) -> Database:
    """Upstream's tables: runs that finished long ago, with lapsed deadlines, and a few that still run."""
    with psycopg.connect(empty_database.conninfo, autocommit=True) as conn:
        conn.execute(STARTUP_BATCH.encode())
        conn.execute(
            "INSERT INTO flow_runs (id, flow_id, status, completed_at) SELECT gen_random_uuid(), gen_random_uuid(), "
            "CASE WHEN n <= %(finished)s THEN 'Succeeded' ELSE 'Running' END, "
            "CASE WHEN n <= %(finished)s THEN now() - interval '1 day' END FROM generate_series(1, %(all)s) n",
            {"finished": FINISHED, "all": FINISHED + RUNNING},
        )
        conn.execute(
            "INSERT INTO flow_run_controls (run_id, flow_id, trigger_key, timeout_at_utc) SELECT id, flow_id, 'm', "
            "now() + CASE WHEN status = 'Running' THEN interval '1 hour' "
            "ELSE interval '-1 hour' END FROM flow_runs"
        )
    return empty_database


def everything(database: Database) -> list[tuple[Any, ...]]:
    """Every row of both tables, whole and with xmin."""
    with psycopg.connect(database.conninfo) as conn:
        controls = conn.execute("SELECT xmin::text, c::text FROM flow_run_controls c ORDER BY run_id").fetchall()
        return controls + conn.execute("SELECT xmin::text, r::text FROM flow_runs r ORDER BY id").fetchall()


@pytest.mark.contract("U-1", "U-2", "U-3")
def test_nothing_is_marked_where_another_engine_completes_runs(shared: Database) -> None:
    """After `migrate`: `run` and `once` end with 6 and say why; `plan` and `check` work; no row is written."""
    settings = {"CURFEW_DATABASE_URL": shared.conninfo}
    assert curfewd("migrate", **settings).returncode == 0
    before = everything(shared)
    assert len(before) == 2 * (FINISHED + RUNNING)

    with DaemonProcess(shared.conninfo) as daemon:
        assert daemon.wait_exit() == 6
        assert daemon.wait_for("upstream_engine_found")["table"] == "public.flow_runs"
        assert "curfewd plan" in daemon.wait_for("database_state_changed", new="upstream_engine")["remedy"]
        assert daemon.lines[-1]["exit_code"] == 6

    once = curfewd("once", **settings)
    assert once.returncode == 6
    assert "flow_runs" in once.stderr
    assert "curfewd plan" in once.stderr

    plan = curfewd("plan", "--within", "2h", **settings)
    assert plan.returncode == 0
    assert f"{FINISHED:,} overdue now, {RUNNING} more within 2h" in plan.stdout
    assert "flow_runs" in plan.stdout

    check = curfewd("check", **settings)
    assert check.returncode == 6
    assert "flow_runs" in check.stdout
    assert "claim" in check.stdout

    assert everything(shared) == before


@pytest.mark.contract("U-1")
def test_an_engine_that_moves_in_stops_a_running_daemon(database: Database, rows: Table) -> None:
    """Its table appears while the daemon runs: exit code 6, and from then on nothing is marked."""
    with DaemonProcess(database.conninfo, CURFEW_OBSERVE_INTERVAL="0.5", CURFEW_OBSERVE_BUDGET="0.5") as daemon:
        rows.await_marked(rows.insert("overdue"))
        rows.sql("CREATE TABLE flow_runs (id uuid)")
        assert daemon.wait_exit() == 6
        daemon.wait_for("upstream_engine_found")
    run = rows.insert("overdue")
    before = rows.row(run)
    with DaemonProcess(database.conninfo) as daemon:
        assert daemon.wait_exit() == 6
    assert not rows.changed(before, run)
