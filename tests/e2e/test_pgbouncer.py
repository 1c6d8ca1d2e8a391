"""Through PgBouncer 1.18 in transaction mode, as Debian ships it."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from curfew_store import FlowRunControlStore
from tests.conftest import Database
from tests.e2e.conftest import Table
from tests.e2e.daemon_process import DaemonProcess, curfewd
from tests.integration.sessions import eventually

pytestmark = pytest.mark.system


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _accepts(conninfo: str) -> bool:
    try:
        psycopg.connect(conninfo).close()
    except psycopg.OperationalError:
        return False
    return True


@pytest.fixture
def pooled(database: Database) -> Iterator[str]:
    """The database behind a pool of two server connections, shared by transaction."""
    program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    assert program, "tests/install-debian.sh installs PgBouncer"
    target = conninfo_to_dict(database.conninfo)
    account = pwd.getpwnam("nobody") if os.getuid() == 0 else None
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        port = _free_port()
        users = Path(folder, "users.txt")
        users.write_text('"postgres" ""\n')
        config = Path(folder, "pgbouncer.ini")
        config.write_text(
            f"[databases]\n{database.name} = host={target['host']} port={target['port']} user=postgres\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = trust\n"
            f"auth_file = {users}\npool_mode = transaction\ndefault_pool_size = 2\n"
        )
        process = subprocess.Popen(
            [program, "-q", str(config)],
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            user=account.pw_uid if account else None,
            group=account.pw_gid if account else None,
            extra_groups=[] if account else None,
        )
        conninfo = f"postgresql://postgres@127.0.0.1:{port}/{database.name}"
        try:
            eventually(lambda: _accepts(conninfo), "PgBouncer accepts connections")
            yield conninfo
        finally:
            process.kill()
            process.wait()


def test_runs_are_marked_through_a_pooler(pooled: str, database: Database, rows: Table) -> None:
    """Three daemons share two server connections: each run once, options dropped said once, no error."""
    rows.sql(
        "INSERT INTO flow_run_controls (run_id, timeout_at_utc) "
        "SELECT gen_random_uuid(), now() + n * interval '5 ms' FROM generate_series(1, 600) n"
    )
    interval: dict[str, Any] = {
        "CURFEW_OBSERVE_INTERVAL": "0.5",
        "CURFEW_OBSERVE_BUDGET": "0.5",
        "CURFEW_BATCH_SIZE": "20",
    }
    daemons = [DaemonProcess(pooled, **interval) for _ in range(3)]
    with daemons[0], daemons[1], daemons[2]:
        rows.await_marked(*(run for (run,) in rows.sql("SELECT run_id FROM flow_run_controls")))
        for daemon in daemons:
            daemon.wait_up()
            daemon.wait_page("/metrics", 200, "curfew_overdue_runs 0.0")
        assert [daemon.stop() for daemon in daemons] == [0, 0, 0]
    assert sum(line["count"] for daemon in daemons for line in daemon.said("runs_timed_out")) == 600
    for daemon in daemons:
        (dropped,) = daemon.said("startup_options_dropped")
        assert "statement_timeout" in dropped["options"]
        assert not daemon.said("observation_failed")
        assert not daemon.said("sweep_failed")


def test_commands_work_through_a_pooler(pooled: str, database: Database, rows: Table) -> None:
    """`once`, `plan` and `check`; the check tells what the role should set itself."""
    rows.insert("overdue")
    settings = {"CURFEW_DATABASE_URL": pooled}
    assert "1 overdue now" in curfewd("plan", **settings).stdout
    assert curfewd("once", **settings).stdout.startswith("marked 1 runs")
    check = curfewd("check", **settings)
    assert check.returncode == 0
    assert "ALTER ROLE" in check.stdout


def test_a_listener_behind_the_pooler_is_noticed_and_one_beside_it_hears(
    pooled: str, database: Database, rows: Table
) -> None:
    """Deaf through the pool: told once, shown, found by `check`, and nothing but the poll interval is lost."""
    settings: dict[str, Any] = {"CURFEW_LISTEN": "true", "CURFEW_POLL_INTERVAL": "2"}
    check = curfewd("check", CURFEW_DATABASE_URL=pooled, **settings)
    assert (check.returncode, "CURFEW_LISTEN_URL" in check.stdout) == (0, True)
    with DaemonProcess(pooled, **settings) as deaf:
        deaf.wait_for("listener_state_changed", new="silent")
        deaf.wait_sample('curfew_listener_state{state="silent"}', 1)
        rows.await_marked(rows.insert("overdue"))
        assert deaf.stop() == 0
        assert len(deaf.said("listener_state_changed")) == 1
    settings["CURFEW_LISTEN_URL"] = database.conninfo
    assert "is heard where" in curfewd("check", CURFEW_DATABASE_URL=pooled, **settings).stdout
    with DaemonProcess(pooled, **settings | {"CURFEW_POLL_INTERVAL": "10"}) as hearing:
        hearing.wait_for("listener_state_changed", new="up")
        hearing.wait_up()
        FlowRunControlStore(database.engine, notify_within=timedelta(seconds=10)).start_run(
            UUID(int=1), "t", timeout=timedelta(milliseconds=300)
        )
        assert hearing.wait_for("runs_timed_out")["lag_max_ms"] < 5000
        assert hearing.stop() == 0
