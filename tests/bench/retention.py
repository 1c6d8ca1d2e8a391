"""How late runs are marked while the same daemon deletes a table full of old ones, beside the same without."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from tests.bench.frame import Bench, BenchDatabase, Figure
from tests.bench.lag import percentile

TITLE = "lag of a steady load while old runs are purged"
RATE = 100
_PATIENCE = 60.0
_AHEAD = 2
"""Seconds from the arming to the first deadline: the daemon has seen it by then."""

# Ended two days ago, each with a key of its own.
_OLD_RUNS = """
INSERT INTO flow_run_controls (run_id, flow_id, trigger_key, idempotency_key, timeout_at_utc, completed_at_utc)
SELECT gen_random_uuid(), '00000000-0000-0000-0000-00000000000f', 'trigger', 'key-' || n, now() - interval '3 days',
       now() - interval '2 days'
FROM generate_series(1, %(count)s) AS n
"""
_OLD_KEYS = """
INSERT INTO flow_idempotency_keys (flow_id, trigger_key, idempotency_key, run_id, created_at_utc)
SELECT flow_id, trigger_key, idempotency_key, run_id, now() - interval '3 days' FROM flow_run_controls
"""
_LOAD = """
INSERT INTO flow_run_controls (run_id, trigger_key, timeout_at_utc)
SELECT gen_random_uuid(), 'load', now() + %(ahead)s * interval '1 second' + n * interval '1 second' / %(rate)s
FROM generate_series(1, %(count)s) AS n
"""
_MARKED = "SELECT count(*) FROM flow_run_controls WHERE trigger_key = 'load' AND timed_out_at_utc IS NOT NULL"
# The row's xmin is the transaction that marked it: nothing writes to it after.
_LAGS = """
SELECT extract(epoch FROM pg_xact_commit_timestamp(xmin) - timeout_at_utc)::float8 FROM flow_run_controls
WHERE trigger_key = 'load' AND timed_out_at_utc IS NOT NULL
"""
_OLD_LEFT = "SELECT count(*) FROM flow_run_controls WHERE completed_at_utc IS NOT NULL"


def run(bench: Bench) -> list[Figure]:
    """A load without a purge and the same load with one, in turn on the same database."""
    if not bench.tells_commits:
        bench.say("this server does not keep the moment of a commit (track_commit_timestamp)")
        return []
    count, seconds = (1_000_000, 120) if bench.full else (40_000, 5)
    without: list[float] = []
    during: list[float] = []
    rates: list[float] = []
    with bench.database("retention") as database:
        for number in range(bench.runs):
            _fill(database, count)
            without.append(_p99(bench, database, seconds, {}))
            during.append(_p99(bench, database, seconds, {"CURFEW_RETENTION": "1d"}))
            left = int(database.scalar(_OLD_LEFT))
            rates.append((count - left) / (seconds + _AHEAD))
            bench.say(
                f"run {number + 1} of {bench.runs}: p99 {without[-1]:.2f} ms without, {during[-1]:.2f} ms during; "
                f"{count - left:,} of {count:,} deleted meanwhile"
            )
    return figures(count, without, during, rates)


def _fill(database: BenchDatabase, count: int) -> None:
    database.maintain("TRUNCATE flow_run_controls, flow_idempotency_keys")
    database.execute(_OLD_RUNS, {"count": count})
    database.execute(_OLD_KEYS)
    for statement in ("VACUUM ANALYZE flow_run_controls", "VACUUM ANALYZE flow_idempotency_keys", "CHECKPOINT"):
        database.maintain(statement)


def _p99(bench: Bench, database: BenchDatabase, seconds: int, settings: Mapping[str, str]) -> float:
    """The lag to the commit that 99 of 100 runs do not exceed, in ms."""
    count = RATE * seconds
    database.execute("DELETE FROM flow_run_controls WHERE trigger_key = 'load'")
    with bench.daemons(database, 1, settings):
        database.execute(_LOAD, {"count": count, "rate": RATE, "ahead": _AHEAD})
        give_up = time.monotonic() + _AHEAD + seconds + _PATIENCE
        time.sleep(_AHEAD + seconds)
        while database.scalar(_MARKED) < count:
            if time.monotonic() > give_up:
                raise TimeoutError("the load was not marked")
            time.sleep(0.05)
    with database.engine.connect() as conn:
        return 1000 * percentile([float(lag) for (lag,) in conn.exec_driver_sql(_LAGS)], 0.99)


def figures(count: int, without: Sequence[float], during: Sequence[float], rates: Sequence[float]) -> list[Figure]:
    """The figures of the runs, judged."""
    lag = Figure(
        f"lag p99 at {RATE}/s while {count:,} old runs are purged",
        during,
        "ms",
        "<= 2 times without",
        reference=without,
    )
    return [
        lag.judged(lambda figure: (figure.ratio or 0) <= 2),
        Figure("old runs purged meanwhile, each with its key", rates, "runs/s"),
    ]
