"""What autovacuum and fillfactor settings do for the tables under a steady cycle of runs, beside PostgreSQL's own.

Each variant works on a table that holds finished runs already. Runs are started, renewed twice, and then completed or
marked by the claim, in groups and at a fixed rate, so that every variant has the same work to clean up after.
Autovacuum looks every second here, not every minute as by default, so that seconds show what otherwise takes an hour.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from sqlalchemy import Connection, text

from curfew_store import enforcement
from curfew_store.schema import tables_in
from tests.bench.frame import Bench, BenchDatabase, Figure

TITLE = "dead rows, HOT updates and size under a steady cycle, by storage parameters"

RATE = 1000
TICK = 0.1
AGE = 10  # ticks from the start of a run to its end
EAGER = "autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000"
VARIANTS = {
    "PostgreSQL's own": "autovacuum_vacuum_scale_factor = 0.2, autovacuum_vacuum_threshold = 50",
    "ours": EAGER,
    "ours, fillfactor 80": f"{EAGER}, fillfactor = 80",
}

_START = text(
    "INSERT INTO flow_run_controls (run_id, flow_id, trigger_key, timeout_at_utc) SELECT gen_random_uuid(), "
    "md5(CAST(:tick AS text))::uuid, 'upkeep', now() + interval '1 hour' FROM generate_series(1, :count)"
)
_RENEW = text(
    "UPDATE flow_run_controls SET timeout_at_utc = timeout_at_utc + interval '1 second' WHERE run_id = ANY(:ids)"
)
_COMPLETE = text("UPDATE flow_run_controls SET completed_at_utc = statement_timestamp() WHERE run_id = ANY(:ids)")
_OVERDUE = text("UPDATE flow_run_controls SET timeout_at_utc = now() WHERE run_id = ANY(:ids)")
_OF_TICK = text(
    "SELECT run_id FROM flow_run_controls WHERE flow_id = md5(CAST(:tick AS text))::uuid "
    "AND created_at_utc > now() - interval '1 minute'"
)
_STATISTICS = text(
    "SELECT n_dead_tup, n_tup_upd, n_tup_hot_upd, autovacuum_count, pg_relation_size(relid), "
    "pg_relation_size('ix_flow_run_controls_armed') FROM pg_stat_user_tables WHERE relname = 'flow_run_controls'"
)


@dataclass
class Seen:
    """What one variant led to."""

    dead: list[int] = field(default_factory=list)
    claims: list[float] = field(default_factory=list)
    late: int = 0
    hot_share: float = 0.0
    vacuums: int = 0
    heap: int = 0
    index: int = 0


def run(bench: Bench) -> list[Figure]:
    """Every variant on a database of its own."""
    old, seconds = (1_000_000, 120.0) if bench.full else (100_000, 8.0)
    figures: list[Figure] = []
    with _eager_autovacuum(bench):
        for name, parameters in VARIANTS.items():
            with bench.database("upkeep") as database:
                seen = _cycle(database, parameters, old, seconds)
            bench.say(f"{name}: {seen.vacuums} vacuums, at most {max(seen.dead):,} dead, {seen.late} late ticks")
            figures += _figures(name, seen)
    return figures


def _figures(name: str, seen: Seen) -> list[Figure]:
    claims = sorted(seen.claims)
    return [
        Figure(f"{name}: dead rows at most", [max(seen.dead)], "rows", notes={"vacuums": seen.vacuums}),
        Figure(f"{name}: HOT updates", [100 * seen.hot_share], "%"),
        Figure(f"{name}: claim, median", [1000 * statistics.median(claims)], "ms"),
        Figure(f"{name}: claim, p99", [1000 * claims[int(0.99 * len(claims))]], "ms"),
        Figure(f"{name}: table", [seen.heap / 2**20], "MiB"),
        Figure(f"{name}: index of armed deadlines", [seen.index / 2**20], "MiB"),
    ]


@contextmanager
def _eager_autovacuum(bench: Bench) -> Iterator[None]:
    with bench.database("upkeep_settings", migrated=False) as database:
        database.maintain("ALTER SYSTEM SET autovacuum_naptime = '1s'")
        database.maintain("SELECT pg_reload_conf()")
        try:
            yield
        finally:
            database.maintain("ALTER SYSTEM RESET autovacuum_naptime")
            database.maintain("SELECT pg_reload_conf()")


def _cycle(database: BenchDatabase, parameters: str, old: int, seconds: float) -> Seen:
    database.execute(f"ALTER TABLE flow_run_controls SET ({parameters})")
    database.execute(
        "INSERT INTO flow_run_controls (run_id, trigger_key, timeout_at_utc, completed_at_utc, created_at_utc) "
        "SELECT gen_random_uuid(), 'old', now() + interval '1 hour', now(), now() - interval '1 day' "
        f"FROM generate_series(1, {old})"
    )
    database.maintain("VACUUM ANALYZE flow_run_controls")
    database.execute("CREATE INDEX ON flow_run_controls (flow_id)")  # the load's own way to its runs
    seen = Seen()
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        begun = time.monotonic()
        for tick in range(round(seconds / TICK)):
            time.sleep(max(0.0, begun + tick * TICK - time.monotonic()))
            seen.late += time.monotonic() - begun > (tick + 2) * TICK
            _tick(conn, tick, seen)
        time.sleep(1.0)  # the statistics of the last statements
        _, updated, hot, seen.vacuums, seen.heap, seen.index = conn.execute(_STATISTICS).one()
        seen.hot_share = hot / max(1, updated)
    return seen


def _tick(conn: Connection, tick: int, seen: Seen) -> None:
    count = round(RATE * TICK)
    conn.execute(_START, {"tick": tick, "count": count})
    for age in (AGE // 3, 2 * AGE // 3):
        conn.execute(_RENEW, {"ids": _started(conn, tick - age)})
    ending = _started(conn, tick - AGE)
    conn.execute(_COMPLETE, {"ids": ending[: len(ending) // 2]})
    conn.execute(_OVERDUE, {"ids": ending[len(ending) // 2 :]})
    asked = time.monotonic()
    enforcement.claim_overdue(conn, tables_in("public"), limit=500)
    seen.claims.append(time.monotonic() - asked)
    seen.dead.append(conn.execute(_STATISTICS).one()[0])


def _started(conn: Connection, tick: int) -> Sequence[object]:
    return conn.execute(_OF_TICK, {"tick": tick}).scalars().all()
