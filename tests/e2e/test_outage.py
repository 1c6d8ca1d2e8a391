"""Outages and refusals while the daemon runs: it stays alive, says each state once, and comes back by itself."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import psycopg
import pytest

from curfew_store.embedded import EmbeddedPostgres
from tests.conftest import Database
from tests.e2e.conftest import Table
from tests.e2e.daemon_process import DaemonProcess, curfewd
from tests.integration.proxy import Proxy, Stopwatch
from tests.servers import migrated_server

SLACK = 5.0
"""Seconds that a busy machine may add."""


@pytest.fixture(scope="module")
def own() -> Iterator[EmbeddedPostgres]:
    """A migrated server that the module may stop."""
    with migrated_server(tcp=True) as server:
        yield server


def insert_overdue(server: EmbeddedPostgres) -> str:
    with psycopg.connect(server.url(), autocommit=True) as conn:
        row = conn.execute(
            "INSERT INTO flow_run_controls (run_id, timeout_at_utc) "
            "VALUES (gen_random_uuid(), now() - interval '1 minute') RETURNING run_id::text"
        ).fetchone()
        assert row is not None
        return str(row[0])


def test_a_server_that_stops_and_returns(own: EmbeddedPostgres) -> None:
    """Healthy but not ready meanwhile; the state is logged once, not each try; marks follow the return at once."""
    with DaemonProcess(own.url()) as daemon:
        daemon.wait_up()
        before = len(daemon.lines)
        own.halt()
        # Refused connections may be preceded by the words of the shutdown.
        daemon.wait_for("database_state_changed", after=before, new="unreachable")
        assert daemon.wait_page("/readyz", 503, "database: unreachable")
        daemon.wait_sample('curfew_sweeps_total{outcome="error"}', 5)
        assert daemon.get("/healthz")[0] == 200
        assert daemon.metric("curfew_database_up") == 0
        assert len(daemon.said("database_state_changed", after=before, new="unreachable")) == 1
        own.resume()
        run = insert_overdue(own)
        with Stopwatch() as watch:
            daemon.wait_for("runs_timed_out", after=before, run_ids=[run])
        assert watch.seconds < 2 + SLACK
        daemon.wait_page("/readyz", 200)
        states = [line["new"] for line in daemon.said("database_state_changed", after=before)]
        assert states[-2:] == ["unreachable", "up"]
        assert set(states[:-2]) <= {"shutting_down"}
        assert daemon.stop() == 0
    assert "Traceback" not in daemon.text


def test_a_crash_of_the_server_is_survived(own: EmbeddedPostgres) -> None:
    """Restarted with recovery, the same daemon goes on; nothing is left to clean up."""
    with DaemonProcess(own.url()) as daemon:
        daemon.wait_up()
        own.restart("immediate")
        run = insert_overdue(own)
        daemon.wait_for("runs_timed_out", run_ids=[run])
        assert daemon.stop() == 0


def test_a_network_that_falls_silent_and_returns(own: EmbeddedPostgres) -> None:
    """A half-open connection is given up within its bound, with the loop alive all the while."""
    with Proxy(own.port) as proxy:
        url = f"postgresql://postgres@127.0.0.1:{proxy.port}/postgres?sslmode=disable&gssencmode=disable"
        bounds: dict[str, Any] = {"CURFEW_STATEMENT_TIMEOUT": "0.5", "CURFEW_LOCK_TIMEOUT": "0.5"}
        with DaemonProcess(url, **bounds) as daemon:
            daemon.wait_up()
            proxy.mode = "black hole"
            with Stopwatch() as watch:
                said = daemon.wait_for("database_state_changed", new="unreachable")
            assert "no answer" in said["error"]
            assert watch.seconds < 1 + 1.5 + SLACK
            assert daemon.get("/healthz")[0] == 200
            proxy.mode = "forward"
            proxy.cut()
            run = insert_overdue(own)
            daemon.wait_for("runs_timed_out", run_ids=[run])
            proxy.mode = "black hole"
            with Stopwatch() as watch:
                assert daemon.stop() == 0
            assert watch.seconds < 2 + 1.5 + SLACK


def test_attempts_go_on_without_a_line_each() -> None:
    """A server that never comes is asked again and again, and mentioned once."""
    with DaemonProcess("host=/nowhere", CURFEW_LOG_LEVEL="debug", CURFEW_RECONNECT_MAX="0.2") as daemon:
        daemon.wait_for("database_state_changed", new="unreachable")
        daemon.wait_sample('curfew_wakeups_total{reason="retry"}', 6)
        assert [line["event"] for line in daemon.lines].count("database_state_changed") == 1
        assert len(daemon.lines) == 3


def test_a_missing_schema_is_waited_for(empty_database: Database) -> None:
    """Alive but not ready, it says once what to run, and goes on by itself after `migrate`."""
    with DaemonProcess(empty_database.conninfo) as daemon:
        said = daemon.wait_for("database_state_changed", new="schema_missing")
        assert "curfewd migrate" in said["remedy"]
        daemon.wait_page("/readyz", 503, "database: schema_missing")
        assert daemon.get("/healthz")[0] == 200
        done = curfewd("migrate", CURFEW_DATABASE_URL=empty_database.conninfo)
        assert done.returncode == 0, done.stderr
        daemon.wait_up()
        rows = Table(empty_database.url)
        rows.await_marked(rows.insert("overdue"))
        rows.close()
        daemon.wait_page("/readyz", 200)
        assert len(daemon.said("database_state_changed", new="schema_missing")) == 1
        assert daemon.stop() == 0


def test_a_table_that_vanishes_is_a_missing_schema(database: Database, rows: Table) -> None:
    """Dropped under a running daemon, and made again by `migrate`."""
    with DaemonProcess(database.conninfo) as daemon:
        daemon.wait_up()
        rows.sql("DROP TABLE flow_run_controls, flow_idempotency_keys, curfew_schema_version")
        daemon.wait_for("database_state_changed", new="schema_missing")
        assert curfewd("migrate", CURFEW_DATABASE_URL=database.conninfo).returncode == 0
        rows.await_marked(rows.insert("overdue"))


def test_a_failover_is_followed() -> None:
    """A standby is told from an outage; when it is promoted the daemon enforces without a restart."""
    with migrated_server() as server:
        run = insert_overdue(server)
        server.halt()
        (server.data_dir / "standby.signal").touch()
        server.resume()
        with DaemonProcess(server.url()) as daemon:
            assert "primary" in daemon.wait_for("database_state_changed", new="standby")["remedy"]
            daemon.wait_page("/readyz", 503, "standby")
            with psycopg.connect(server.url(), autocommit=True) as conn:
                conn.execute("SELECT pg_promote()")
            daemon.wait_for("runs_timed_out", run_ids=[run])
            assert daemon.stop() == 0


def test_a_locked_table_is_a_state_of_its_own(database: Database, rows: Table) -> None:
    """DDL that holds the table is named, with what to look for; marking resumes when it has gone."""
    run = rows.insert("overdue")
    hold = rows.held("LOCK TABLE flow_run_controls IN SHARE MODE")
    with hold as holder, DaemonProcess(database.conninfo, CURFEW_LOCK_TIMEOUT="0.2") as daemon:
        assert "pg_locks" in daemon.wait_for("database_state_changed", new="lock_timeout")["remedy"]
        holder.rollback()
        rows.await_marked(run)


def test_held_rows_are_waited_for_without_a_storm(database: Database, rows: Table) -> None:
    """While somebody holds an overdue run others are marked on time, and it follows once it is free."""
    held = rows.insert("overdue")
    with DaemonProcess(database.conninfo) as daemon:
        with rows.held("SELECT 1 FROM flow_run_controls WHERE run_id = :run FOR UPDATE", run=held):
            daemon.wait_up()
            near = rows.insert(timeout_at_utc="now() + interval '1200 ms'")
            rows.await_marked(near)
            assert rows.sql("SELECT 1 FROM flow_run_controls WHERE run_id = :r AND timed_out_at_utc IS NULL", r=held)
            daemon.wait_page("/metrics", 200, "curfew_overdue_runs 1.0")
        rows.await_marked(held)
        assert daemon.metric('curfew_wakeups_total{reason="blocked"}') < 40
        assert daemon.stop() == 0


def test_times_in_the_log_are_utc_and_in_order(own: EmbeddedPostgres) -> None:
    """Each line carries an ISO timestamp of its own."""
    with DaemonProcess(own.url(), TZ="Asia/Tokyo") as daemon:
        daemon.wait_up()
        assert daemon.stop() == 0
    times = [datetime.fromisoformat(line["timestamp"]) for line in daemon.lines]
    assert times == sorted(times)
    assert {time.utcoffset() for time in times} == {times[0].utcoffset()}
    assert str(daemon.lines[0]["timestamp"]).endswith("Z")
