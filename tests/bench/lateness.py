"""How late the runs of a database were marked: from the deadline to the time stamp of the commit, in seconds."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from tests.bench.frame import BenchDatabase

# The row's xmin is the transaction that marked it: nothing writes to it after.
_LATENESS = """
WITH lag AS (
    SELECT extract(epoch FROM pg_xact_commit_timestamp(xmin) - timeout_at_utc)::float8 AS seconds,
           percent_rank() OVER (ORDER BY timeout_at_utc) AS place
    FROM flow_run_controls WHERE timed_out_at_utc IS NOT NULL AND trigger_key = 'lag'
)
SELECT count(*), percentile_disc(0.5) WITHIN GROUP (ORDER BY seconds),
       percentile_disc(0.99) WITHIN GROUP (ORDER BY seconds), max(seconds), min(seconds),
       percentile_disc(0.99) WITHIN GROUP (ORDER BY seconds) FILTER (WHERE place < 0.333),
       percentile_disc(0.99) WITHIN GROUP (ORDER BY seconds) FILTER (WHERE place > 0.667)
FROM lag
"""
_SHARES = """
SELECT percentile_disc(%(shares)s::float8[]) WITHIN GROUP (
    ORDER BY extract(epoch FROM pg_xact_commit_timestamp(xmin) - timeout_at_utc)::float8)
FROM flow_run_controls WHERE timed_out_at_utc IS NOT NULL AND trigger_key = 'lag'
"""
_ARM = """
INSERT INTO flow_run_controls (run_id, trigger_key, timeout_at_utc)
SELECT gen_random_uuid(), 'lag', %(first)s::timestamptz + (n - 1) * %(step)s::float8 * interval '1 second'
FROM generate_series(1, %(count)s) AS n
"""


@dataclass(frozen=True)
class Lateness:
    """Seconds from deadline to commit; *first* and *last* are the 99th percentiles of the outer thirds."""

    marked: int
    p50: float
    p99: float
    worst: float
    least: float
    first: float
    last: float


def measured(database: BenchDatabase) -> Lateness:
    """Of all marked runs that `arm` armed."""
    with database.engine.connect() as conn:
        return Lateness(*conn.exec_driver_sql(_LATENESS).one())


def distribution(database: BenchDatabase, shares: list[float]) -> list[float]:
    """The lag, in seconds, that each share of the runs does not exceed."""
    return [float(each) for each in database.scalar(_SHARES, {"shares": shares})]


def now(database: BenchDatabase) -> datetime:
    """The server's clock."""
    moment: datetime = database.scalar("SELECT clock_timestamp()")
    return moment


def arm(database: BenchDatabase, count: int, first: datetime, step: float) -> timedelta:
    """Arm *count* runs with deadlines *step* seconds apart; how long before the first deadline that was done."""
    database.execute(_ARM, {"count": count, "first": first, "step": step})
    return first - now(database)
