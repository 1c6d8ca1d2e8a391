"""Why a drain begins with batches of 500, goes up to 2,000 and uses two connections: each choice beside the others."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from tests.bench import pictures
from tests.bench.drain import drained
from tests.bench.frame import Bench, BenchDatabase, Figure

TITLE = "marks per second by the size of a batch and the number of connections"
DEFAULT = "2,000 on 2"
CHOICES: Mapping[str, Mapping[str, str]] = {
    f"{size:,} on {connections}": {
        "CURFEW_BATCH_SIZE": str(size),
        "CURFEW_DRAIN_CONNECTIONS": str(connections),
    }
    for size, connections in ((100, 1), (500, 1), (2_000, 1), (5_000, 1), (2_000, 2), (2_000, 4), (2_000, 8), (500, 4))
}
# Each commit is one batch.
_LOCKED_FOR = """
SELECT percentile_disc(0.5) WITHIN GROUP (ORDER BY seconds) FROM (
    SELECT extract(epoch FROM max(pg_xact_commit_timestamp(xmin)) - min(timed_out_at_utc))::float8 AS seconds
    FROM flow_run_controls WHERE timed_out_at_utc IS NOT NULL GROUP BY xmin::text
) AS batch
"""


def run(bench: Bench) -> list[Figure]:
    """Every choice in turn, run after run, so that what else the machine does falls on all of them."""
    count = 200_000 if bench.full else 40_000
    rates: dict[str, list[float]] = {name: [] for name in CHOICES}
    locked: dict[str, list[float]] = {name: [] for name in CHOICES}
    with bench.database("batches") as database:
        for number in range(bench.runs):
            for name, settings in CHOICES.items():
                rate, seconds = _measure(bench, database, settings, count)
                rates[name].append(rate)
                locked[name].append(1000 * seconds)
            bench.say(
                f"run {number + 1} of {bench.runs}: " + ", ".join(f"{k} {v[-1]:,.0f}/s" for k, v in rates.items())
            )
    bench.picture("batches", _picture(count, rates))
    figures = [Figure(f"{name}", rates[name], "marks/s", reference=rates[DEFAULT]) for name in CHOICES]
    return figures + [Figure(f"{name}: a batch holds its rows for", locked[name], "ms") for name in CHOICES]


def _measure(bench: Bench, database: BenchDatabase, settings: Mapping[str, str], count: int) -> tuple[float, float]:
    with bench.daemons(database, 1, settings) as (daemon,):
        rate = drained(database, [daemon.pid], count)
    return rate, float(database.scalar(_LOCKED_FOR))


def _picture(count: int, rates: Mapping[str, list[float]]) -> str:
    medians = [statistics.median(values) for values in rates.values()]
    top = 20_000 * (1 + int(max(medians) // 20_000))
    return pictures.bars(
        f"A backlog of {count:,}: batches of … on … connections",
        f"marks per second of one daemon; the default is {DEFAULT}",
        pictures.Axis("marks/s", [top * share / 4 for share in range(5)]),
        list(rates),
        [("marks/s", medians)],
    )
