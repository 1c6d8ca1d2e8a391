"""How fast a backlog is marked: by one daemon and by parallel sweeps of one, beside the reference loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.bench import backlog, readings
from tests.bench.frame import Bench, BenchDatabase, Figure

TITLE = "marks per second of a backlog, and the memory it takes"
MIB = 2**20
PARALLEL = {"CURFEW_DRAIN_CONNECTIONS": "4"}


@dataclass
class _Measured:
    """Marks per second of each side, and the memory of the daemon in MiB, a value for each run."""

    one: list[float] = field(default_factory=list)
    parallel: list[float] = field(default_factory=list)
    loop: list[float] = field(default_factory=list)
    four_loops: list[float] = field(default_factory=list)
    idle: list[float] = field(default_factory=list)
    peak: list[float] = field(default_factory=list)


def run(bench: Bench) -> list[Figure]:
    """Ours and the reference in turn, each on the same backlog."""
    count = 500_000 if bench.full else 60_000
    seen = _Measured()
    with bench.database("drain") as database:
        for number in range(bench.runs):
            with bench.daemons(database) as (daemon,):
                seen.idle.append(readings.memory(daemon.pid) / MIB)
                seen.one.append(drained(database, [daemon.pid], count))
                seen.peak.append(readings.peak_memory(daemon.pid) / MIB)
            with bench.daemons(database, 1, PARALLEL) as (daemon,):
                seen.parallel.append(drained(database, [daemon.pid], count))
            for loops, rates in ((1, seen.loop), (4, seen.four_loops)):
                with bench.reference(database, loops) as pids:
                    rates.append(drained(database, pids, count))
            bench.say(
                f"run {number + 1} of {bench.runs}: daemon {seen.one[-1]:,.0f}/s, on four connections "
                f"{seen.parallel[-1]:,.0f}/s; one loop {seen.loop[-1]:,.0f}/s, four {seen.four_loops[-1]:,.0f}/s"
            )
    return _figures(count, seen)


def drained(
    database: BenchDatabase, pids: Sequence[int], count: int, *, equal: bool = False, truncate: bool = True
) -> float:
    """The rate at which the processes mark a backlog that they find all at once, in a table that was empty."""
    if truncate:
        backlog.empty(database)
    with backlog.frozen(pids):
        backlog.fill(database, count, equal=equal)
    backlog.wait_until_marked(database, count)
    return backlog.rate(database)


def _figures(count: int, seen: _Measured) -> list[Figure]:
    growth = [most - least for most, least in zip(seen.peak, seen.idle, strict=True)]
    one = Figure(f"one daemon, backlog of {count:,}", seen.one, "marks/s", ">= 0.95 of one loop", reference=seen.loop)
    four = Figure("on four connections", seen.parallel, "marks/s", ">= 0.90 of four loops", reference=seen.four_loops)
    return [
        one.judged(lambda figure: (figure.ratio or 0) >= 0.95),
        four.judged(lambda figure: (figure.ratio or 0) >= 0.90),
        Figure("memory at most", seen.peak, "MiB", "<= 100 MB").judged(lambda figure: figure.median * MIB <= 100e6),
        Figure("memory gained by it", growth, "MiB", "< 10 MB").judged(lambda figure: figure.median * MIB < 10e6),
    ]
