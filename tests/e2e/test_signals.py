"""Signals: stopping, stopping at once, and reading the settings again."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from curfew_store.testing import DatabaseTemplate
from tests.conftest import Database
from tests.e2e.conftest import Table
from tests.e2e.daemon_process import DaemonProcess, clean_environment
from tests.integration.proxy import Stopwatch
from tests.integration.sessions import eventually

SLACK = 5.0
"""Seconds that a busy machine may add."""


_SIGNALLED_WHILE_IMPORTING = """
import os, sys
from curfew_daemon.__main__ import main

class Signal:
    def find_spec(self, name, *_rest):
        if name == "curfew_daemon.cli":
            os.kill(os.getpid(), int(sys.argv.pop()))

sys.meta_path.insert(0, Signal())
main()
"""


@pytest.mark.parametrize(
    ("command", "number", "code"),
    [
        ("run", signal.SIGTERM, 0),
        ("run", signal.SIGINT, 0),
        ("run", signal.SIGHUP, 3),  # goes on, and finds no settings
        ("once", signal.SIGTERM, -15),
    ],
)
def test_a_signal_that_comes_while_the_daemon_is_still_imported(command: str, number: int, code: int) -> None:
    """A stop is one of an idle daemon, SIGHUP ends nothing; commands that end by themselves are left to the system."""
    done = subprocess.run(
        [sys.executable, "-c", _SIGNALLED_WHILE_IMPORTING, command, str(int(number))],
        env=clean_environment({}),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_daemon_stops_at_once(database: Database, number: signal.Signals) -> None:
    """Exit code 0, and the log says which signal it was."""
    with DaemonProcess(database.conninfo, CURFEW_POLL_INTERVAL="10") as daemon:
        daemon.wait_up()
        with Stopwatch() as watch:
            daemon.signal(number)
            assert daemon.wait_exit() == 0
        daemon.wait_for("stopping", signal=number.name)
    assert watch.seconds < 2 + SLACK


def test_a_daemon_that_waits_for_a_deadline_stops_at_once(database: Database, rows: Table) -> None:
    """The wait for a near deadline is as interruptible as any."""
    run = rows.insert(timeout_at_utc="now() + interval '9 seconds'")
    with DaemonProcess(database.conninfo, CURFEW_POLL_INTERVAL="10") as daemon:
        daemon.wait_up()
        with Stopwatch() as watch:
            assert daemon.stop() == 0
    assert watch.seconds < 2 + SLACK
    assert rows.sql("SELECT timed_out_at_utc FROM flow_run_controls WHERE run_id = :run", run=run) == [(None,)]


def test_a_daemon_without_a_database_stops_at_once() -> None:
    """Neither a pause between two attempts nor an attempt that hangs is waited out."""
    with DaemonProcess("host=/nowhere", CURFEW_RECONNECT_MAX="10") as daemon:
        daemon.wait_for("database_state_changed", new="unreachable")
        with Stopwatch() as watch:
            assert daemon.stop() == 0
    assert watch.seconds < 2 + SLACK


def test_a_statement_in_hand_is_finished(database: Database, rows: Table) -> None:
    """Stopped while its claim waits for a lock that is then released: the run is marked, and that is reported."""
    run = rows.insert("overdue")
    hold = rows.held("LOCK TABLE flow_run_controls IN SHARE MODE")
    with hold as holder, DaemonProcess(database.conninfo, CURFEW_LOCK_TIMEOUT="5") as daemon:
        rows.wait_until_blocked()
        daemon.signal(signal.SIGTERM)
        daemon.wait_for("stopping")
        holder.commit()
        assert daemon.wait_exit() == 0
    rows.await_marked(run)
    assert daemon.said("runs_timed_out")[0]["run_ids"] == [str(run)]


def test_a_statement_that_does_not_end_is_rolled_back(database: Database, rows: Table) -> None:
    """After the grace it is cancelled on the server: exit code 0, no session and no mark left behind."""
    run = rows.insert("overdue")
    with rows.held("LOCK TABLE flow_run_controls IN SHARE MODE"):
        with DaemonProcess(database.conninfo, CURFEW_SHUTDOWN_GRACE="0.2", CURFEW_LOCK_TIMEOUT="5") as daemon:
            daemon.wait_for("started")
            rows.wait_until_blocked()
            with Stopwatch() as watch:
                assert daemon.stop() == 0
            daemon.wait_for("shutdown_grace_exceeded", grace_s=0.2)
        sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'curfewd%' AND state = 'active'"
        assert rows.sql(sessions) == [(0,)]
    assert watch.seconds < 2 + SLACK
    assert rows.sql("SELECT timed_out_at_utc FROM flow_run_controls WHERE run_id = :run", run=run) == [(None,)]
    assert not daemon.said("database_state_changed", new="statement_timeout")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_second_signal_exits_at_once(
    database: Database, rows: Table, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """While the first stop waits for a statement, another one ends the process with 128 + its number."""
    rows.insert("overdue")
    with (
        rows.held("LOCK TABLE flow_run_controls IN SHARE MODE"),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
    ):
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(30)
        with DaemonProcess(
            database.conninfo,
            NOTIFY_SOCKET=str(tmp_path / "notify"),
            CURFEW_SHUTDOWN_GRACE="60",
            CURFEW_LOCK_TIMEOUT="5",
        ) as daemon:
            rows.wait_until_blocked()
            daemon.signal(signal.SIGTERM)
            while b"STOPPING=1" not in manager.recv(4096):  # later than the line of the log, which takes a lock
                pass
            daemon.signal(number)
            assert daemon.wait_exit() == code
            daemon.wait_for("second_signal", signal=number.name)


def test_a_reload_takes_over_what_it_may_and_refuses_the_rest_by_name(
    database: Database, rows: Table, tmp_path: Path
) -> None:
    """Log level, poll interval and batch size of the file hold from now on, without a restart."""
    file = tmp_path / "env"
    file.write_text("CURFEW_POLL_INTERVAL=10\n")
    with DaemonProcess(database.conninfo, CURFEW_ENV_FILE=str(file)) as daemon:
        daemon.wait_up()
        file.write_text(
            "CURFEW_POLL_INTERVAL=0.05\nCURFEW_BATCH_SIZE=2\nCURFEW_LOG_LEVEL=debug\nCURFEW_SCHEMA=other\n"
            "CURFEW_INSTANCE=other\n"
        )
        daemon.signal(signal.SIGHUP)
        reloaded = daemon.wait_for("reloaded")
        assert set(reloaded["changed"]) == {"CURFEW_POLL_INTERVAL", "CURFEW_BATCH_SIZE", "CURFEW_LOG_LEVEL"}
        assert daemon.wait_for("reload_refused")["names"] == ["CURFEW_INSTANCE", "CURFEW_SCHEMA"]
        daemon.wait_for("sweep_silent", reason="poll", occurrence=5)  # debug, and no longer every ten seconds
        rows.sql(
            "INSERT INTO flow_run_controls (run_id, timeout_at_utc) "
            "SELECT gen_random_uuid(), now() FROM generate_series(1, 5)"
        )
        assert daemon.wait_for("runs_timed_out", count=5)["batches"] == 3
        assert daemon.stop() == 0


def test_a_reload_that_names_another_server_takes_everything_there(
    database: Database, rows: Table, curfew_database: DatabaseTemplate, tmp_path: Path
) -> None:
    """Marks and gauges are the new one's at once, however rarely gauges are read, and nothing stays on the old one."""
    file, name = tmp_path / "env", curfew_database.create()
    other = Table(curfew_database.server.sqlalchemy_url(name))
    rows.insert("active")
    for _ in range(3):
        other.insert("active")
    file.write_text(f'CURFEW_DATABASE_URL="{database.conninfo}"\n')
    try:
        with DaemonProcess(None, CURFEW_ENV_FILE=str(file), CURFEW_OBSERVE_INTERVAL="300") as daemon:
            daemon.wait_page("/metrics", 200, "curfew_armed_runs 1.0")
            file.write_text(f'CURFEW_DATABASE_URL="{curfew_database.server.url(name)}"\n')
            daemon.signal(signal.SIGHUP)
            daemon.wait_page("/metrics", 200, "curfew_armed_runs 3.0")
            other.await_marked(other.insert("overdue"))
            stays = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'curfewd %' AND datname = :name"
            eventually(lambda: rows.sql(stays, name=database.name)[0][0] == 0, "no session stays on the old one")
            assert daemon.stop() == 0
    finally:
        other.close()
        curfew_database.drop(name)


def test_a_reload_of_a_bad_file_keeps_the_old_settings(database: Database, rows: Table, tmp_path: Path) -> None:
    """The error names the variable; the daemon goes on as before, and a good file is taken afterwards."""
    file = tmp_path / "env"
    file.write_text("CURFEW_BATCH_SIZE=3\n")
    with DaemonProcess(database.conninfo, CURFEW_ENV_FILE=str(file)) as daemon:
        daemon.wait_up()
        for content, words in (("CURFEW_BATCH_SIZE=0\n", "CURFEW_BATCH_SIZE"), ("PATH=/\n", "CURFEW_ENV_FILE")):
            file.write_text(content)
            before = len(daemon.lines)
            daemon.signal(signal.SIGHUP)
            assert words in daemon.wait_for("reload_failed", after=before)["error"]
        rows.await_marked(rows.insert("overdue"))
        file.write_text("CURFEW_BATCH_SIZE=4\n")
        daemon.signal(signal.SIGHUP)
        assert daemon.wait_for("reloaded")["changed"] == ["CURFEW_BATCH_SIZE"]
        assert daemon.stop() == 0


def test_a_reload_wakes_a_sleeping_daemon(database: Database, rows: Table) -> None:
    """Even with nothing changed it sweeps at once, on a new connection."""
    with DaemonProcess(database.conninfo, CURFEW_POLL_INTERVAL="10") as daemon:
        daemon.wait_up()
        session = (
            "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'curfewd%' ORDER BY backend_start LIMIT 1"
        )
        first = rows.sql(session)
        run = rows.insert("overdue")
        began = time.monotonic()
        daemon.signal(signal.SIGHUP)
        rows.await_marked(run)
        assert time.monotonic() - began < 10
        assert rows.sql(session) != first
