"""`curfewd run` with a retention, as a process: set by a reload, seen in its log and its metrics."""

from __future__ import annotations

import signal
from pathlib import Path

from tests.conftest import Database
from tests.e2e.conftest import Table
from tests.e2e.daemon_process import DaemonProcess


def test_a_reload_sets_the_retention_and_takes_it_back(database: Database, rows: Table, tmp_path: Path) -> None:
    """Off at first; after SIGHUP old runs go at once, after another one nothing goes any more."""
    run = rows.insert("completed", completed_at_utc="now() - interval '2 hours'")
    rows.insert_key(run, "key")
    file = tmp_path / "env"
    file.write_text("")
    with DaemonProcess(database.conninfo, CURFEW_ENV_FILE=str(file)) as daemon:
        daemon.wait_up()
        file.write_text("CURFEW_RETENTION=1h\n")
        daemon.signal(signal.SIGHUP)
        assert daemon.wait_for("reloaded")["changed"] == ["CURFEW_RETENTION"]
        purged = daemon.wait_for("purged")
        assert (purged["runs"], purged["keys"], purged["outcome"]) == (1, 1, "done")
        daemon.wait_sample('curfew_purged_rows_total{kind="run"}', 1.0)
        file.write_text("")
        daemon.signal(signal.SIGHUP)
        daemon.wait_for("reloaded", occurrence=2)
        daemon.wait_page("/metrics", 200, "curfew_retention_seconds 0.0")
        assert daemon.stop() == 0
    assert rows.row(run) is None
