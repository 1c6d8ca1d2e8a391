"""Lag of one daemon while something is done to it, beside its lag in peace: in turn, so that drift hits both."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

from tests.bench import backlog, lateness
from tests.bench.disk import beside_the_disk
from tests.bench.frame import Bench, BenchDatabase, Figure
from tests.bench.lag_steady import arm_steadily
from tests.faults.daemons import DaemonProcess

RATE = 100.0


def lag_with_and_without(
    bench: Bench,
    name: str,
    disturb: Callable[[DaemonProcess], AbstractContextManager[None]],
    *,
    most: float,
    peace: Callable[[DaemonProcess], AbstractContextManager[None]] = lambda _daemon: nullcontext(),
) -> list[Figure]:
    """The 50th and 99th percentiles at 100 deadlines a second inside *disturb*, beside those inside *peace*.

    The goal is that the latter is at most *most* times as great. Every run is judged against a bare one of its own,
    and the order changes from run to run. No figures where the server does not keep the moments of commits.
    """
    if not bench.tells_commits:
        bench.say("the server does not keep the moments of commits (track_commit_timestamp): nothing to measure")
        return []
    seconds = 20.0 if bench.full else 6.0
    lags: dict[str, list[lateness.Lateness]] = {"with": [], "without": []}
    stills: dict[str, list[float]] = {"with": [], "without": []}
    with bench.database(name) as database, bench.daemons(database) as (daemon,):
        for number in range(bench.runs):
            for side in ("with", "without") if number % 2 else ("without", "with"):
                around = partial(disturb if side == "with" else peace, daemon)
                lag, disk = beside_the_disk(bench, partial(_lag, database, seconds, around))
                lags[side].append(lag)
                stills[side].append(1000 * disk.longest)
            said = ", ".join(f"{side} {1000 * of[-1].p99:.1f} ms ({stills[side][-1]:.0f})" for side, of in lags.items())
            bench.say(f"run {number + 1} of {bench.runs}: p99 (and the disk's worst write) {said}")
    figures = []
    for figure in ("p50", "p99"):
        ours, alone = ([1000 * float(getattr(each, figure)) for each in lags[side]] for side in ("with", "without"))
        figures.append(
            Figure(f"{figure} at {RATE:g}/s", ours, "ms", reference=alone, notes={"the disk's worst write, ms": stills})
        )
    figures[-1] = figures[-1].with_goal(f"<= {most:g} of the lag in peace").judged(lambda it: (it.ratio or 9) <= most)
    return figures


def _lag(
    database: BenchDatabase, seconds: float, around: Callable[[], AbstractContextManager[None]]
) -> lateness.Lateness:
    backlog.empty(database)
    with around():
        arm_steadily(database, RATE, seconds)
        backlog.wait_until_marked(database, round(RATE * seconds))
    return lateness.measured(database)
