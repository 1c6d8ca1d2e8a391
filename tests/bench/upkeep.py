"""What autovacuum and fillfactor settings do for both tables under a steady cycle of runs, beside PostgreSQL's own.

Each variant works on a table that holds finished runs already. Runs are started, renewed twice, and then completed or
marked by the claim, in groups and at a fixed rate, so that every variant has the same work to clean up after. Keys are
registered and the oldest deleted at that rate, as a purge does that has caught up: nothing else makes their table old.
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

KEYS_VARIANTS = {name: VARIANTS[name] for name in ("PostgreSQL's own", "ours")}

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
_REGISTER = text(
    "INSERT INTO flow_idempotency_keys (flow_id, trigger_key, idempotency_key, run_id) "
    "SELECT md5('')::uuid, 'upkeep', md5(CAST(n AS text)), gen_random_uuid() "
    "FROM generate_series(CAST(:first AS int), CAST(:last AS int)) AS n ON CONFLICT DO NOTHING"
)
_FORGET = text(
    "DELETE FROM flow_idempotency_keys WHERE flow_id = md5('')::uuid AND trigger_key = 'upkeep' "
    "AND idempotency_key = ANY "
    "(SELECT md5(CAST(n AS text)) FROM generate_series(CAST(:first AS int), CAST(:last AS int)) AS n)"
)
_KEYS_STATISTICS = text(
    "SELECT n_dead_tup, autovacuum_count, pg_relation_size(relid), pg_indexes_size(relid) "
    "FROM pg_stat_user_tables WHERE relname = 'flow_idempotency_keys'"
)


@dataclass
class Seen:
    """What one variant led to."""

    dead: list[int] = field(default_factory=list)
    claims: list[float] = field(default_factory=list)
    """Seconds of each; of the keys, what registering one took."""
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
            figures += _figures(name, seen, "claim", "index of armed deadlines")
            figures.append(Figure(f"{name}: HOT updates", [100 * seen.hot_share], "%"))
        for name, parameters in KEYS_VARIANTS.items():
            with bench.database("upkeep_keys") as database:
                seen = _cycle_of_keys(database, parameters, old // 5, seconds)
            bench.say(f"keys, {name}: {seen.vacuums} vacuums, at most {max(seen.dead):,} dead, {seen.late} late ticks")
            figures += _figures(f"keys, {name}", seen, "registering one", "index")
    return figures


def _figures(name: str, seen: Seen, timed: str, index: str) -> list[Figure]:
    times = sorted(seen.claims)
    return [
        Figure(f"{name}: dead rows at most", [max(seen.dead)], "rows", notes={"vacuums": seen.vacuums}),
        Figure(f"{name}: {timed}, median", [1000 * statistics.median(times)], "ms"),
        Figure(f"{name}: {timed}, p99", [1000 * times[int(0.99 * len(times))]], "ms"),
        Figure(f"{name}: table", [seen.heap / 2**20], "MiB"),
        Figure(f"{name}: {index}", [seen.index / 2**20], "MiB"),
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


def _cycle_of_keys(database: BenchDatabase, parameters: str, old: int, seconds: float) -> Seen:
    database.execute(f"ALTER TABLE flow_idempotency_keys SET ({parameters})")
    count = round(RATE * TICK)
    seen = Seen()
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        conn.execute(_REGISTER, {"first": 1, "last": old})
        conn.exec_driver_sql("VACUUM ANALYZE flow_idempotency_keys")
        begun = time.monotonic()
        for tick in range(round(seconds / TICK)):
            time.sleep(max(0.0, begun + tick * TICK - time.monotonic()))
            seen.late += time.monotonic() - begun > (tick + 2) * TICK
            conn.execute(_REGISTER, {"first": old + tick * count + 1, "last": old + (tick + 1) * count - 1})
            conn.execute(_FORGET, {"first": tick * count + 1, "last": (tick + 1) * count})
            asked = time.monotonic()
            conn.execute(_REGISTER, {"first": old + (tick + 1) * count, "last": old + (tick + 1) * count})
            seen.claims.append(time.monotonic() - asked)
            seen.dead.append(conn.execute(_KEYS_STATISTICS).one()[0])
        time.sleep(1.0)  # the statistics of the last statements
        _, seen.vacuums, seen.heap, seen.index = conn.execute(_KEYS_STATISTICS).one()
    return seen
