"""Lag of one daemon while something is done to it, beside its lag in peace: in turn, so that drift hits both."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

from tests.bench import backlog, lateness
from tests.bench.frame import Bench, BenchDatabase, Figure
from tests.bench.lag_steady import Side, arm_steadily
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
    sides = {"with": Side(), "without": Side()}
    with bench.database(name) as database, bench.daemons(database) as (daemon,):
        for number in range(bench.runs):
            for side in ("with", "without") if number % 2 else ("without", "with"):
                around = partial(disturb if side == "with" else peace, daemon)
                sides[side].measure(bench, partial(_lag, database, seconds, around))
            said = ", ".join(f"{name} {side.last}" for name, side in sides.items())
            bench.say(f"run {number + 1} of {bench.runs}: p99 (and the disk's worst write) {said}")
    stills = {name: side.stills for name, side in sides.items()}
    figures = [
        Figure(
            f"{name} at {RATE:g}/s",
            sides["with"].milliseconds(name),
            "ms",
            reference=sides["without"].milliseconds(name),
            notes={"the disk's worst write, s": stills},
        )
        for name in ("p50", "p99")
    ]
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
