"""How late deadlines are met after the daemon that met them was killed: standbys sleep past them, but not for long."""

from __future__ import annotations

import re
import time
from datetime import timedelta

from tests.bench import backlog, lateness
from tests.bench.frame import Bench, BenchDatabase, Figure
from tests.faults.daemons import DaemonProcess

TITLE = "lag after the daemon that met all deadlines was killed"
DAEMONS = 3
POLL_INTERVAL = 1.0
"""Of a daemon with default settings; a standby sleeps past a deadline for no longer, once it has been beaten often."""
RATE = 100.0
_SETTLE = 10.0
"""Seconds of deadlines before the kill: a standby's sleep past them doubles with each that another met."""
_AFTER = 3.0
_MARKED = re.compile(r"^curfew_runs_timed_out_total (\S+)$", re.MULTILINE)
# Of runs due after the kill, in milliseconds; the row's xmin is the transaction that marked it.
_LATEST = """
SELECT 1000 * max(extract(epoch FROM pg_xact_commit_timestamp(xmin) - timeout_at_utc))::float8
FROM flow_run_controls WHERE timed_out_at_utc IS NOT NULL AND timeout_at_utc > %(killed)s
"""


def run(bench: Bench) -> list[Figure]:
    """The worst lag after a kill, as often as is asked for, each time of daemons just started."""
    if not bench.tells_commits:
        bench.say("the server does not keep the moments of commits (track_commit_timestamp): nothing to measure")
        return []
    worst = []
    for number in range(bench.runs if not bench.full else 3 * bench.runs):
        with bench.database("failover") as database, bench.daemons(database, DAEMONS) as daemons:
            worst.append(_worst(database, daemons))
        bench.say(f"kill {number + 1}: the worst deadline after it was met {worst[-1]:.0f} ms late")
    most = 1000 * POLL_INTERVAL
    figure = Figure(
        f"worst lag after SIGKILL of the active one of {DAEMONS}", worst, "ms", f"<= {most:g} ms, one poll interval"
    )
    return [figure.judged(lambda it: it.greatest <= most)]


def _worst(database: BenchDatabase, daemons: list[DaemonProcess]) -> float:
    count = round(RATE * (_SETTLE + _AFTER))
    first = lateness.now(database) + timedelta(seconds=2)
    lateness.arm(database, count, first, 1 / RATE)
    time.sleep((first + timedelta(seconds=_SETTLE) - lateness.now(database)).total_seconds())
    marked = [_marked(daemon) for daemon in daemons]
    active = daemons[marked.index(max(marked))]
    killed = lateness.now(database)
    active.kill()
    backlog.wait_until_marked(database, count)
    return float(database.scalar(_LATEST, {"killed": killed}))


def _marked(daemon: DaemonProcess) -> float:
    found = _MARKED.search(daemon.page("/metrics"))
    if found is None:
        raise RuntimeError("a daemon does not say how many runs it has marked")
    return float(found[1])
