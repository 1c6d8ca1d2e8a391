"""What the store costs its callers: throughput, round trips, many runs at once, fought-over keys, size of the table."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any
from uuid import UUID, uuid4

import psycopg
from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy.dialects.postgresql import insert as upsert

from curfew_store import FlowRunControlStore, RunConfiguration
from curfew_store.run_ids import new_run_id
from curfew_store.schema import tables_in
from tests.bench import producer_load as load
from tests.bench.frame import Bench, BenchDatabase, Figure
from tests.integration.wire import Wire

TITLE = "what a call costs its caller"
CONNECTIONS = 8
THREADS = 64


def run(bench: Bench) -> list[Figure]:
    """One after the other; what is compared takes turns."""
    with bench.database("producers") as database:
        return [
            *_round_trips(database),
            *_throughput(bench, database),
            _many_at_once(bench, database),
            *_fought_over_keys(bench, database),
            *_ids_and_size(bench),
        ]


def _round_trips(database: BenchDatabase) -> list[Figure]:
    engine = create_engine(load.alchemy(database.url), pool_size=1)
    store, wire = FlowRunControlStore(engine), Wire(engine)
    calls: dict[str, Callable[[], object]] = {
        "configure_run": lambda: store.configure_run(uuid4(), load.FLOW, "order", timeout=load.HOUR),
        "start_run": lambda: store.start_run(load.FLOW, "order", timeout=load.HOUR),
        "start_run, with key": lambda: store.start_run(load.FLOW, "order", uuid4().hex, timeout=load.HOUR),
    }
    figures = []
    for name, call in calls.items():
        for _ in range(10):
            call()
        figure = Figure(f"{name}: round trips", [wire.round_trips(call)], "", "1")
        figures.append(figure.judged(lambda found: found.median == 1))
    engine.dispose()
    return figures


def _throughput(bench: Bench, database: BenchDatabase) -> list[Figure]:
    seconds = 10.0 if bench.full else 0.7
    rates: dict[str, list[float]] = {kind: [] for kind in load.KINDS}
    for number in range(bench.runs):
        for kind, found in rates.items():
            found.append(load.throughput(kind, database.url, CONNECTIONS, seconds))
            database.execute("TRUNCATE flow_run_controls, flow_idempotency_keys")
        told = ", ".join(f"{kind} {found[-1]:,.0f}" for kind, found in rates.items())
        bench.say(f"run {number + 1} of {bench.runs}, calls/s: {told}")
    plain = "0.8 of a plain INSERT through SQLAlchemy"
    of_each = f" on {CONNECTIONS} connections"
    figures = [
        Figure(name + of_each, rates[name], "/s", f">= {plain}", reference=rates["SQLAlchemy"]).judged(
            lambda figure: (figure.ratio or 0) >= 0.8
        )
        for name in ("configure_run", "start_run")
    ]
    beside = [("configure_run", "psycopg"), ("start_run", "psycopg"), ("start_run, with key", "psycopg, with key")]
    return figures + [
        Figure(f"{name}{of_each}, beside {other} alone", rates[name], "/s", reference=rates[other])
        for name, other in beside
    ]


def _many_at_once(bench: Bench, database: BenchDatabase) -> Figure:
    count = 50_000 if bench.full else 10_000
    store = FlowRunControlStore(database.engine)

    def measure() -> float:
        runs = [RunConfiguration(new_run_id(), load.FLOW, "order", None, timeout=load.HOUR) for _ in range(count)]
        begun = time.monotonic()
        store.configure_runs(runs)
        return count / (time.monotonic() - begun)

    measure()
    figure = Figure(f"configure_runs of {count:,}", bench.repeat("configure_runs", measure), "runs/s", ">= 50,000")
    return figure.judged(lambda found: found.median >= 50_000)


def _fought_over_keys(bench: Bench, database: BenchDatabase) -> list[Figure]:
    """The 99th percentile in milliseconds, beside psycopg on connections that its threads hold.

    Through the store on connections that the threads hold as well, and with one from the pool for each call, beside a
    plain INSERT of SQLAlchemy's that takes one from the pool.
    """
    found: dict[str, list[float]] = {name: [] for name in ("held", "alone", "pooled", "SQLAlchemy")}
    with ExitStack() as stack:
        engine = create_engine(load.alchemy(database.url), pool_size=2 * THREADS)
        stack.callback(engine.dispose)
        store, autocommit = FlowRunControlStore(engine), engine.execution_options(isolation_level="AUTOCOMMIT")
        held = [stack.enter_context(autocommit.connect()) for _ in range(THREADS)]
        connections = [stack.enter_context(psycopg.connect(database.url, autocommit=True)) for _ in range(THREADS)]
        callers = {
            "held": [_registers(store, conn) for conn in held],
            "alone": [_inserts(conn) for conn in connections],
            "pooled": [_registers(store)] * THREADS,
            "SQLAlchemy": [_inserts_through(autocommit)] * THREADS,
        }
        for _ in range(bench.runs):
            for name, each in callers.items():
                keys = [uuid4().hex for _ in range(100 if bench.full else 20)]
                found[name].append(_p99(load.contended(each, keys)))
    goal = "<= 10 ms or 1.5 times psycopg alone"
    what = f"a key that {THREADS} threads register, p99"
    return [
        Figure(f"{what}, connections held", found["held"], "ms", goal, reference=found["alone"]).judged(
            lambda figure: figure.median <= 10 or (figure.ratio or 9) <= 1.5
        ),
        Figure(f"{what}, from the pool, beside SQLAlchemy", found["pooled"], "ms", reference=found["SQLAlchemy"]),
    ]


def _p99(seconds: list[float]) -> float:
    return 1000 * seconds[int(0.99 * len(seconds))]


def _registers(store: FlowRunControlStore, held: Connection | None = None) -> Callable[[str], object]:
    return lambda key: store.try_register_idempotency_key(load.FLOW, "order", key, uuid4(), connection=held)


def _inserts_through(engine: Engine) -> Callable[[str], object]:
    keys = tables_in("public").keys
    insert = upsert(keys).on_conflict_do_nothing()

    def call(key: str) -> object:
        row = {"flow_id": load.FLOW, "trigger_key": "order", "idempotency_key": key, "run_id": uuid4()}
        with engine.connect() as conn:
            return conn.execute(insert, row).rowcount

    return call


def _inserts(conn: psycopg.Connection[Any]) -> Callable[[str], object]:
    insert = (
        "INSERT INTO flow_idempotency_keys (flow_id, trigger_key, idempotency_key, run_id) "
        "VALUES (%s, 'order', %s, %s) ON CONFLICT DO NOTHING RETURNING run_id"
    )
    return lambda key: conn.execute(insert, (load.FLOW, key, uuid4())).fetchone()


_RANDOM = "gen_random_uuid()"
_TIMED = (
    "(lpad(to_hex((1700000000000 + n)::bigint), 12, '0') || '7' || substr(md5(n::text), 1, 3) || '8' || "
    "substr(md5(n::text), 4, 15))::uuid"
)


def _ids_and_size(bench: Bench) -> list[Figure]:
    """Calls on a small table and on a large one take turns, so that what else the machine does weighs on both alike."""
    small, large = (100_000, 10_000_000) if bench.full else (20_000, 400_000)
    figures = []
    for name, filled, handed_out, most in (("random ids", _RANDOM, uuid4, 1.5), ("UUIDv7", _TIMED, new_run_id, 1.2)):
        with bench.database("producers_small") as few, bench.database("producers_large") as many:
            _fill(few, small, filled)
            _fill(many, large, filled)
            took = [_in_turns(bench, (few, many), handed_out) for _ in range(bench.runs)]
        bench.say(f"{name}: filled and measured")
        figures.append(
            Figure(
                f"configure_run at {large:,} rows, {name}",
                [each[1] for each in took],
                "us",
                f"<= {most} times that at {small:,}",
                reference=[each[0] for each in took],
            ).judged(lambda figure, most=most: (figure.ratio or 0) <= most)  # type: ignore[misc]
        )
    return figures


def _fill(database: BenchDatabase, size: int, ids: str) -> None:
    database.execute(
        "INSERT INTO flow_run_controls (run_id, timeout_at_utc, completed_at_utc) "
        f"SELECT {ids}, now() + interval '1 month', CASE WHEN mod(n, 10) > 0 THEN now() END "
        f"FROM generate_series(1, {size}) n"
    )
    database.maintain("VACUUM ANALYZE flow_run_controls")
    database.maintain("CHECKPOINT")


def _in_turns(bench: Bench, databases: Sequence[BenchDatabase], handed_out: Callable[[], UUID]) -> list[float]:
    """The median of a call in microseconds on each of the databases."""
    stores = [FlowRunControlStore(database.engine) for database in databases]
    taken: list[list[float]] = [[] for _ in stores]
    for _ in range(5000 if bench.full else 500):
        for store, mine in zip(stores, taken, strict=True):
            run_id = handed_out()
            begun = time.monotonic()
            store.configure_run(run_id, load.FLOW, "order", timeout=load.HOUR)
            mine.append(time.monotonic() - begun)
    return [1e6 * statistics.median(mine) for mine in taken]
