"""`curfewd run` from start to marking, its pages, the service manager, and what does not kill it."""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from curfew_daemon.metrics import METRICS
from tests.conftest import Database
from tests.e2e.conftest import Table
from tests.e2e.daemon_process import DaemonProcess, curfewd


def test_a_run_is_marked_when_its_deadline_comes(database: Database, rows: Table) -> None:
    """Overdue at the start, and falling due while it runs: both marked, said once each, and counted."""
    old = rows.insert("overdue")
    left = {state: rows.insert(state) for state in ("active", "disarmed", "cancelled", "completed", "timed_out")}
    before = {state: rows.row(run) for state, run in left.items()}
    with DaemonProcess(database.conninfo, CURFEW_LOG_LEVEL="debug") as daemon:
        daemon.wait_up()
        rows.await_marked(old)
        soon = rows.insert(timeout_at_utc="now() + interval '1500 ms'")
        rows.await_marked(soon)
        line = daemon.wait_for("runs_timed_out", run_ids=[str(soon)])
        assert line["count"] == 1
        assert 0 <= line["lag_max_ms"] < 2000
        assert 0 <= rows.lateness(soon) < 2
        assert daemon.wait_for("run_timed_out", run_id=str(old))["level"] == "debug"
        daemon.get("/metrics")
        assert daemon.stop() == 0
    assert len(daemon.said("runs_timed_out", count=1)) == 2
    assert not any(rows.changed(before[state], run) for state, run in left.items())


def test_its_start_and_end_are_told(database: Database) -> None:
    """The log begins with the address of the pages and the settings in force, and ends with the exit code."""
    with DaemonProcess(database.conninfo, CURFEW_INSTANCE="one", CURFEW_BATCH_SIZE="7") as daemon:
        daemon.wait_up()
        assert daemon.stop() == 0
    assert [line["event"] for line in daemon.lines] == [
        "http_listening",
        "started",
        "database_state_changed",
        "stopping",
        "stopped",
    ]
    started = daemon.lines[1]
    assert (started["instance"], started["batch_size"], started["schema"]) == ("one", 7, "public")
    assert database.name in started["database"]
    assert daemon.lines[-1]["exit_code"] == 0


def test_every_metric_is_there_from_the_start() -> None:
    """Without a database, and before anything happened, each documented series has a value."""
    with DaemonProcess("host=/nowhere") as daemon:
        daemon.wait_for("started")
        page = daemon.get("/metrics")[1]
    for metric in METRICS:
        suffix = "_count" if metric.kind == "histogram" else ""
        labels = [f'{label}="{value}"' for label, values in metric.labels.items() for value in values] or [""]
        for label in labels:
            assert re.search(rf"^{metric.name}{suffix}(\{{{label}.*?\}})? \S+$", page, re.MULTILINE), (metric, label)
    assert 'version="unknown"' not in page


def test_the_pages_show_a_working_daemon(database: Database, rows: Table) -> None:
    """Healthy, ready, a plain index with links, and counters that move."""
    run = rows.insert("overdue")
    with DaemonProcess(database.conninfo, CURFEW_OBSERVE_INTERVAL="0.5", CURFEW_OBSERVE_BUDGET="0.5") as daemon:
        daemon.wait_for("runs_timed_out")
        rows.await_marked(run)
        daemon.wait_page("/readyz", 200, "ok")
        assert daemon.get("/healthz") == (200, "ok\n")
        status, index = daemon.get("/")
        assert status == 200
        assert all(f'href="{page}"' in index for page in ("/metrics", "/healthz", "/readyz"))
        daemon.wait_page("/metrics", 200, "curfew_armed_runs 0.0")
        assert daemon.metric("curfew_runs_timed_out_total") == 1
        assert daemon.metric("curfew_enforcement_lag_seconds_count") == 1
        assert daemon.metric("curfew_database_up") == 1
        assert daemon.metric('curfew_database_state{state="up"}') == 1
        assert daemon.metric("curfew_last_successful_sweep_timestamp_seconds") > 1.6e9
        rows.insert("active")
        daemon.wait_page("/metrics", 200, "curfew_armed_runs 1.0")
        assert daemon.metric("curfew_next_deadline_timestamp_seconds") > 1.6e9


def test_a_schema_of_its_own_can_be_chosen(empty_database: Database) -> None:
    """Migrated and enforced in another schema, beside nothing in `public`."""
    settings = {"CURFEW_DATABASE_URL": empty_database.conninfo, "CURFEW_SCHEMA": "My-Runs"}
    assert curfewd("migrate", **settings).returncode == 0
    rows = Table(empty_database.url, schema='"My-Runs"')
    try:
        run = rows.insert("overdue")
        with DaemonProcess(empty_database.conninfo, CURFEW_SCHEMA="My-Runs"):
            rows.await_marked(run)
    finally:
        rows.close()


def test_several_daemons_mark_each_run_once(database: Database, rows: Table) -> None:
    """Three on one database: the counts that they log add up to the runs."""
    rows.sql(
        "INSERT INTO flow_run_controls (run_id, timeout_at_utc) "
        "SELECT gen_random_uuid(), now() + n * interval '2 ms' FROM generate_series(1, 1000) n"
    )
    daemons = [DaemonProcess(database.conninfo) for _ in range(3)]
    with daemons[0], daemons[1], daemons[2]:
        for daemon in daemons:
            daemon.wait_for("started")  # one that others leave nothing to do may still be importing
        rows.await_marked(*(run for (run,) in rows.sql("SELECT run_id FROM flow_run_controls")))
        assert [daemon.stop() for daemon in daemons] == [0, 0, 0]
    counts = [line["count"] for daemon in daemons for line in daemon.said("runs_timed_out")]
    assert sum(counts) == 1000


def test_the_port_taken_is_an_exit_code() -> None:
    """Another daemon on the same port: 7, and what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = curfewd("run", CURFEW_DATABASE_URL="host=/nowhere", CURFEW_HTTP_PORT=port)
    assert done.returncode == 7
    assert "CURFEW_HTTP_PORT" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_service_manager_is_kept_informed(database: Database, tmp_path: Path) -> None:
    """READY once the loop runs, the state as STATUS, WATCHDOG from the sweep, RELOADING and READY, STOPPING."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(30)
        heard: list[str] = []

        def hear_until(words: str) -> list[str]:
            since = len(heard)
            while not any(words in message for message in heard[since:]):
                heard.append(manager.recv(4096).decode())
            return heard[since:]

        file = tmp_path / "env"
        file.write_text("CURFEW_BATCH_SIZE=5\n")
        with DaemonProcess(
            database.conninfo,
            NOTIFY_SOCKET=str(tmp_path / "notify"),
            WATCHDOG_USEC="16000000",
            CURFEW_ENV_FILE=str(file),
        ) as daemon:
            assert "READY=1" in hear_until("READY=1")[-1]
            assert "STATUS=database: up" in hear_until("database: up")[-1]
            hear_until("WATCHDOG=1")
            daemon.signal(signal.SIGHUP)
            hear_until("RELOADING=1")
            assert re.search(r"MONOTONIC_USEC=\d+", heard[-1])
            assert "STATUS=database: up" in hear_until("READY=1")[-1]
            assert daemon.stop() == 0
            hear_until("STOPPING=1")


def test_without_a_database_it_is_ready_for_its_manager_and_beats(tmp_path: Path) -> None:
    """An outage at the start is no failed start: READY, then WATCHDOG again and again."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(30)
        with DaemonProcess(
            "host=/nowhere",
            NOTIFY_SOCKET=str(tmp_path / "notify"),
            WATCHDOG_USEC="2500000",
            CURFEW_CONNECT_TIMEOUT="2",
            CURFEW_STATEMENT_TIMEOUT="0.2",
            CURFEW_LOCK_TIMEOUT="0.2",
            CURFEW_POLL_INTERVAL="0.5",
            CURFEW_RECONNECT_MAX="0.5",
        ) as daemon:
            assert daemon.wait_exit() == 3, "three seconds for a connect do not fit into this watchdog"
        assert "WATCHDOG_USEC" in daemon.text
        with DaemonProcess(
            "host=/nowhere", NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="13000000", CURFEW_POLL_INTERVAL="1"
        ):
            assert manager.recv(4096).startswith(b"READY=1")
            beats = 0
            while beats < 2:
                beats += manager.recv(4096) == b"WATCHDOG=1"


def test_a_closed_log_does_not_kill_it(database: Database, rows: Table) -> None:
    """Nobody reads the log any more: lines are dropped, marking goes on, and it stops as asked."""
    read, write = os.pipe()
    with DaemonProcess(database.conninfo, stderr=write) as daemon:
        os.close(write)
        assert select.select([read], [], [], 30)[0]
        os.close(read)
        run = rows.insert("overdue")
        rows.await_marked(run)
        assert daemon.alive
        assert daemon.stop() == 0


def test_it_starts_and_stops_with_standard_error_closed(database: Database, rows: Table) -> None:
    """`2>&-`: no log at all, and no other difference."""
    run = rows.insert("overdue")
    command = f'exec "{sys.executable}" -m curfew_daemon run 2>&-'
    with DaemonProcess(database.conninfo, program=("sh", "-c", command), stderr=subprocess.DEVNULL) as daemon:
        rows.await_marked(run)
        assert daemon.stop() == 0


@pytest.mark.parametrize("late", [False, True])
def test_the_death_of_the_http_server_is_reported_and_marking_goes_on(
    database: Database, rows: Table, late: bool
) -> None:
    """Its pages are gone, which the log says; deadlines are met all the same."""
    program = (
        "import asyncio, uvicorn\n"
        "async def tick(self, counter):\n"
        f"    if {late} and counter < 3: return False\n"
        "    raise RuntimeError('planted')\n"
        "uvicorn.Server.on_tick = tick\n"
        "from curfew_daemon.__main__ import main\n"
        "main()\n"
    )
    with DaemonProcess(database.conninfo, program=(sys.executable, "-c", program, "run")) as daemon:
        assert "planted" in daemon.wait_for("http_died")["error"]
        run = rows.insert("overdue")
        rows.await_marked(run)
        assert daemon.stop() == 0
