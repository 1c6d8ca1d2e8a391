"""What the size of the table costs: sweep, look ahead and producers, on plain and on partitioned tables."""

from __future__ import annotations

import gc
import statistics
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from sqlalchemy import Connection

from curfew_store import FlowRunControlStore, enforcement
from curfew_store.run_ids import new_run_id
from curfew_store.schema import tables_in
from tests.bench import pictures, readings
from tests.bench.frame import Bench, BenchDatabase, Figure
from tests.integration.partitioned import PARTITIONS, partition_and_migrate

TITLE = "cost against the size of the table, plain and partitioned"
SMALL = 100_000
_TABLES = tables_in("public")
_FLOW = uuid.UUID("0c0ffee0-0000-4000-8000-000000000003")
# Nine in ten have ended, the others are armed for the next month.
_FILL = """
INSERT INTO flow_run_controls (run_id, flow_id, trigger_key, timeout_at_utc, completed_at_utc)
SELECT gen_random_uuid(), '0c0ffee0-0000-4000-8000-000000000003', 'size', now() + random() * interval '30 days'
    + interval '1 hour', CASE WHEN n %% 10 > 0 THEN now() END
FROM generate_series(1, %(rows)s) n
"""
_DUE = """
INSERT INTO flow_run_controls (run_id, flow_id, trigger_key, timeout_at_utc)
SELECT gen_random_uuid(), '0c0ffee0-0000-4000-8000-000000000003', 'size', now() - n * interval '1 ms'
FROM generate_series(1, %(rows)s) n
"""
_TIMES = 200
_BATCH = 500


@dataclass
class Costs:
    """Seconds for each call, medians of many; a list entry per run."""

    rows: int
    partitioned: bool
    look: list[float] = field(default_factory=list)
    sweep: list[float] = field(default_factory=list)
    claim_one: list[float] = field(default_factory=list)
    claim_batch: list[float] = field(default_factory=list)
    random_ids: list[float] = field(default_factory=list)
    ordered_ids: list[float] = field(default_factory=list)
    server: dict[str, float] = field(default_factory=dict)
    """Processor seconds of the session's server process per call."""

    @property
    def name(self) -> str:
        """How a reader knows it."""
        return f"{self.rows:,} rows" + (f" in {PARTITIONS} partitions" if self.partitioned else "")


def run(bench: Bench) -> list[Figure]:
    """A small table, a large one and a large one in partitions, in turn."""
    large = 10_000_000 if bench.full else 1_000_000
    measured = [_measured(bench, rows, parts) for rows, parts in ((SMALL, False), (large, False), (large, True))]
    bench.data["size"] = [vars(each) for each in measured]
    bench.picture("size", _picture(measured))
    small, plain, parts = measured
    return [*_against(plain, small), *_against(parts, plain, judged=False), *_server_costs(small)]


def _measured(bench: Bench, rows: int, partitioned: bool) -> Costs:
    costs = Costs(rows, partitioned)
    with bench.database("size", migrated=not partitioned) as database:
        if partitioned:
            partition_and_migrate(database.engine)
        begin = time.perf_counter()
        database.execute(_FILL, {"rows": rows})
        database.maintain("VACUUM ANALYZE flow_run_controls")
        database.maintain("CHECKPOINT")
        bench.say(f"{costs.name}: filled in {time.perf_counter() - begin:.0f} s")
        with autocommitted(database) as conn:
            for _ in range(bench.runs):
                _measure(conn, database, costs)
            costs.server = server_costs(conn)
    bench.say(
        f"{costs.name}: look ahead {1e3 * costs.look[-1]:.2f} ms, sweep {1e3 * costs.sweep[-1]:.2f} ms, "
        f"configure_run {1e3 * costs.random_ids[-1]:.2f} ms"
    )
    return costs


@contextmanager
def autocommitted(database: BenchDatabase) -> Iterator[Connection]:
    """A session as the daemon's."""
    with database.engine.connect() as conn:
        yield conn.execution_options(isolation_level="AUTOCOMMIT")


def _measure(conn: Connection, database: BenchDatabase, costs: Costs) -> None:
    def look() -> None:
        enforcement.look_ahead(conn, _TABLES)

    def sweep() -> None:
        enforcement.claim_overdue(conn, _TABLES, limit=_BATCH)
        enforcement.look_ahead(conn, _TABLES)

    costs.look.append(median_of(look))
    costs.sweep.append(median_of(sweep))
    costs.claim_one.append(_claims(conn, 1, 40))
    costs.claim_batch.append(_claims(conn, _BATCH, 10))
    store = FlowRunControlStore(database.engine)
    deadline = conn.exec_driver_sql("SELECT now() + interval '15 days'").scalar_one()
    for seconds, new_id in ((costs.random_ids, uuid.uuid4), (costs.ordered_ids, new_run_id)):
        seconds.append(median_of(lambda new=new_id: store.configure_run(new(), _FLOW, "size", timeout_at_utc=deadline)))  # type: ignore[misc]


def _claims(conn: Connection, runs: int, times: int) -> float:
    """The median of claims that mark *runs* each."""
    conn.exec_driver_sql(_DUE, {"rows": runs * times})

    def claim() -> None:
        if len(enforcement.claim_overdue(conn, _TABLES, limit=runs)) != runs:
            raise RuntimeError("a claim came back short")

    return median_of(claim, times)


def median_of(call: Callable[[], object], times: int = _TIMES) -> float:
    """The median duration of a call, in seconds."""
    found = []
    gc.disable()
    for _ in range(times):
        begin = time.perf_counter()
        call()
        found.append(time.perf_counter() - begin)
    gc.enable()
    return statistics.median(found)


def server_costs(conn: Connection) -> dict[str, float]:
    """Processor seconds of the server for a look, a claim and each mark in it; none of a server elsewhere."""
    pid = conn.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
    try:
        readings.cpu(pid)
    except OSError:
        return {}
    batches, ones, looks = 40, 500, 4_000  # enough for a clock that ticks a hundred times a second
    conn.exec_driver_sql(_DUE, {"rows": batches * _BATCH + ones})

    def used(call: Callable[[], object], times: int) -> float:
        before = readings.cpu(pid)
        for _ in range(times):
            call()
        return (readings.cpu(pid) - before) / times

    batch = used(lambda: enforcement.claim_overdue(conn, _TABLES, limit=_BATCH), batches)
    one = used(lambda: enforcement.claim_overdue(conn, _TABLES, limit=1), ones)
    look = used(lambda: enforcement.look_ahead(conn, _TABLES), looks)
    mark = max(0.0, (batch - one) / (_BATCH - 1))
    return {"look": look, "claim": max(0.0, one - mark), "mark": mark}


def _against(costs: Costs, beside: Costs, *, judged: bool = True) -> list[Figure]:
    limits = {"look": 1.2, "sweep": 1.2, "claim_one": None, "claim_batch": None, "random_ids": 1.5, "ordered_ids": 1.2}
    names = {
        "look": "look ahead",
        "sweep": "sweep with nothing due",
        "claim_one": "claim of 1 run",
        "claim_batch": f"claim of {_BATCH} runs",
        "random_ids": "configure_run, random id",
        "ordered_ids": "configure_run, UUIDv7",
    }
    figures = []
    for key, limit in limits.items():
        ours, theirs = ([1e3 * each for each in getattr(which, key)] for which in (costs, beside))
        figure = Figure(f"{names[key]}, {costs.name}", ours, "ms", reference=theirs)
        if judged and limit is not None:
            goal = f"<= {limit} x at {beside.name}"
            figure = Figure(figure.name, ours, "ms", goal, reference=theirs).judged(
                lambda each, limit=limit: (each.ratio or 9) <= limit  # type: ignore[misc]
            )
        figures.append(figure)
    return figures


def _picture(measured: Sequence[Costs]) -> str:
    calls = {"look": "look ahead", "sweep": "sweep with nothing due"}
    found = [(each.name, [1e3 * statistics.median(getattr(each, call)) for call in calls]) for each in measured]
    top = 0.2 * (1 + int(5 * max(max(values) for _, values in found)))
    return pictures.bars(
        "Cost against the size of the table",
        "milliseconds per call, nine rows in ten finished, median of the runs",
        pictures.Axis("ms", [top * share / 4 for share in range(5)]),
        list(calls.values()),
        found,
    )


def _server_costs(costs: Costs) -> list[Figure]:
    return [
        Figure(f"processor of the server for a {what}", [1e6 * seconds], "us") for what, seconds in costs.server.items()
    ]
