"""A transaction that stays open keeps every dead entry of the index: what that costs a drain, and a look after it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from sqlalchemy import text

from curfew_store import enforcement
from curfew_store.schema import tables_in
from tests.bench import backlog, lateness, pictures, readings
from tests.bench.drain import drained
from tests.bench.frame import Bench, BenchDatabase, Figure

TITLE = "marks per second while a transaction holds the horizon back, and the look ahead after it"
LOOKS = 50
KINDS = ("spread", "equal")


def run(bench: Bench) -> list[Figure]:
    """A backlog of spread deadlines and one of equal ones, each without and with an old transaction."""
    count = 500_000 if bench.full else 60_000
    free: dict[str, list[float]] = {kind: [] for kind in KINDS}
    held: dict[str, list[float]] = {kind: [] for kind in KINDS}
    from_mark: list[float] = []
    full_look: list[float] = []
    with bench.database("horizon") as database, bench.daemons(database) as (daemon,):
        for number in range(bench.runs):
            for kind in KINDS:
                equal = kind == "equal"
                free[kind].append(drained(database, [daemon.pid], count, equal=equal))
                with old_transaction(database):
                    held[kind].append(drained(database, [daemon.pid], count, equal=equal, truncate=False))
                    if equal:
                        from_mark.append(1000 * look(database, from_the_mark=True))
                        full_look.append(1000 * look(database, from_the_mark=False))
            rates = ", ".join(f"{kind} {held[kind][-1]:,.0f}/s of {free[kind][-1]:,.0f}/s" for kind in KINDS)
            bench.say(f"run {number + 1} of {bench.runs}: {rates}; look from the mark {from_mark[-1]:.2f} ms")
        memory = readings.peak_memory(daemon.pid)
    bench.picture("horizon", _picture(count, free, held))
    figures = [
        Figure(f"held, {count:,} {kind} deadlines", held[kind], "marks/s", ">= 0.90 of unheld", reference=free[kind])
        .judged(lambda it: (it.ratio or 0) >= 0.9)
        for kind in KINDS
    ]  # fmt: skip
    after = Figure("look ahead from the mark after it", from_mark, "ms", "< 1 ms")
    figures.append(after.judged(lambda it: it.median < 1))
    figures.append(Figure("full look beside it", full_look, "ms"))
    return [*figures, Figure("memory at most", [memory / 2**20], "MiB")]


@contextmanager
def old_transaction(database: BenchDatabase) -> Iterator[None]:
    """Inside, a snapshot is held that is older than everything that is written there."""
    backlog.empty(database)
    with database.engine.connect().execution_options(isolation_level="REPEATABLE READ") as old:
        old.execute(text("SELECT count(*) FROM pg_catalog.pg_class"))
        yield
        old.rollback()


def look(database: BenchDatabase, *, from_the_mark: bool) -> float:
    """The median duration of the daemon's look ahead, in seconds."""
    tables = tables_in("public")
    since = lateness.now(database) - timedelta(seconds=0.5) if from_the_mark else None
    took = []
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        for _ in range(LOOKS if from_the_mark else 5):
            began = time.monotonic()
            enforcement.look_ahead(conn, tables, since=since)
            took.append(time.monotonic() - began)
    return statistics.median(took)


def _picture(count: int, free: dict[str, list[float]], held: dict[str, list[float]]) -> str:
    most = max(*(statistics.median(values) for values in (*free.values(), *held.values())), 1.0)
    top = 20_000 * (1 + int(most // 20_000))
    return pictures.bars(
        f"A backlog of {count:,} runs",
        "marks per second of one daemon, median of the runs",
        pictures.Axis("marks/s", [top * share / 4 for share in range(5)]),
        [f"{kind} deadlines" for kind in KINDS],
        [
            ("nothing held", [statistics.median(free[kind]) for kind in KINDS]),
            ("an old transaction", [statistics.median(held[kind]) for kind in KINDS]),
        ],
    )
