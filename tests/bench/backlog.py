"""A backlog of overdue runs, and how fast it was marked by the server's own account."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from tests.bench.frame import BenchDatabase

PATIENCE = 30.0
"""Seconds without a mark after which waiting for more gives up."""
_LOOK_EVERY = 0.2

# Random ids, as producers without ids of their own use; deadlines over the last hour, or all the same.
_FILL = """
INSERT INTO flow_run_controls (run_id, trigger_key, timeout_at_utc)
SELECT gen_random_uuid(), 'backlog', moment.now - CASE WHEN %(equal)s THEN interval '60 s'
                                       ELSE interval '60 s' + random() * interval '3600 s' END
FROM (SELECT clock_timestamp() AS now) AS moment, generate_series(1, %(count)s)
"""
# From the start of the first claim to the last commit. The row's xmin is the transaction that marked it.
_RATE = """
SELECT count(*) / extract(epoch FROM max(pg_xact_commit_timestamp(xmin)) - min(timed_out_at_utc))::float8
FROM flow_run_controls WHERE timed_out_at_utc IS NOT NULL
"""


def fill(database: BenchDatabase, count: int, *, equal: bool = False) -> None:
    """Write *count* overdue runs, and leave table and server as a while after: analysed, written to disk."""
    database.execute(_FILL, {"count": count, "equal": equal})
    database.maintain("ANALYZE flow_run_controls")
    checkpoint(database)


def checkpoint(database: BenchDatabase) -> None:
    """Have everything written to disk, so that no checkpoint falls into what is measured."""
    database.maintain("CHECKPOINT")


def empty(database: BenchDatabase) -> None:
    """Take all runs away."""
    database.execute("TRUNCATE flow_run_controls")


@contextmanager
def frozen(pids: Iterable[int]) -> Iterator[None]:
    """Those processes stand still inside."""
    stopped = list(pids)
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)


def wait_until_marked(database: BenchDatabase, count: int) -> None:
    """Return when *count* runs are marked; raises `TimeoutError` when for `PATIENCE` seconds none more was."""
    marked, since = -1, time.monotonic()
    while time.monotonic() < since + PATIENCE:
        now = int(database.scalar("SELECT count(*) FROM flow_run_controls WHERE timed_out_at_utc IS NOT NULL"))
        if now >= count:
            return
        if now > marked:
            marked, since = now, time.monotonic()
        # Rarely enough that the count costs the drain nothing.
        time.sleep(max(_LOOK_EVERY, 10 * _LOOK_EVERY * count / 500_000))
    raise TimeoutError(f"{marked} of {count} runs were marked")


def rate(database: BenchDatabase) -> float:
    """Marks per second, from the start of the first claim to the last commit."""
    return float(database.scalar(_RATE))
