"""How late deadlines are met that fall due evenly: three daemons with everything on, beside three reference loops."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial

from tests.bench import backlog, lateness, pictures
from tests.bench.disk import beside_the_disk
from tests.bench.frame import Bench, BenchDatabase, Figure
from tests.bench.lateness import Lateness
from tests.bench.watchers import watched

TITLE = "lag from the deadline to the commit, at a steady rate"
DAEMONS = 3
AHEAD = 3.0
"""Seconds by which runs are armed before their deadlines, in batches of `TICK`; the poll interval is one."""
TICK = 0.5
GOALS = {100: {"p50": 0.002, "p99": 0.003}, 2_000: {"p99": 0.005}, 10_000: {"p99": 0.012}}
SHARES = [0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999, 1.0]


@dataclass
class Side:
    """What was measured on one of the sides that take turns."""

    lags: list[Lateness] = field(default_factory=list)
    stills: list[float] = field(default_factory=list)
    """How long the disk stood still in each of the runs, in seconds."""
    shares: list[float] = field(default_factory=list)

    def measure(self, bench: Bench, phase: Callable[[], Lateness]) -> None:
        """Once more, beside the disk."""
        lag, disk = beside_the_disk(bench, phase)
        self.lags.append(lag)
        self.stills.append(disk.longest)

    @property
    def last(self) -> str:
        """The last run, as a reader wants it."""
        return f"{1000 * self.lags[-1].p99:.1f} ms ({1000 * self.stills[-1]:.0f})"

    def milliseconds(self, name: str) -> list[float]:
        """That figure of each run."""
        return [1000 * float(getattr(each, name)) for each in self.lags]


def run(bench: Bench) -> list[Figure]:
    """Ours, ours with nobody looking, and the reference, in turn at each rate."""
    if not bench.tells_commits:
        bench.say("the server does not keep the moments of commits (track_commit_timestamp): nothing to measure")
        return []
    seconds = 60.0 if bench.full else 4.0
    figures: list[Figure] = []
    with bench.database("lag_steady") as database:
        for rate in GOALS:
            sides = {name: Side() for name in ("watched", "alone", "reference")}
            for number in range(bench.runs):
                for name, side in sides.items():
                    side.measure(bench, partial(_phase, bench, database, name, rate, seconds))
                    if number == bench.runs - 1:
                        side.shares = lateness.distribution(database, SHARES)
                said = ", ".join(f"{name} {side.last}" for name, side in sides.items())
                bench.say(f"{rate:,}/s, run {number + 1} of {bench.runs}: p99 (and the disk's worst write) {said}")
            figures += _figures(rate, sides)
            bench.data[f"lag at {rate}/s"] = {
                name: dict(zip(SHARES, side.shares, strict=True)) for name, side in sides.items()
            }
            bench.picture(f"lag-{rate}", _picture(rate, sides))
    return figures


def _phase(bench: Bench, database: BenchDatabase, name: str, rate: int, seconds: float) -> Lateness:
    backlog.empty(database)
    with ExitStack() as stack:
        if name == "reference":
            stack.enter_context(bench.reference(database, DAEMONS))
        else:
            daemons = stack.enter_context(bench.daemons(database, DAEMONS))
            if name == "watched":
                stack.enter_context(watched(daemons))
        backlog.checkpoint(database)
        arm_steadily(database, rate, seconds)
        backlog.wait_until_marked(database, round(rate * seconds))
    return lateness.measured(database)


def arm_steadily(database: BenchDatabase, rate: float, seconds: float) -> None:
    """Arm *rate* runs a second for that long, `AHEAD` before their deadlines; returns when the last is due.

    Raises `RuntimeError` if the arming cannot keep up: the lag would be the producer's.
    """
    begin = lateness.now(database) + timedelta(seconds=AHEAD)
    started = time.monotonic()
    pause = threading.Event()
    for tick in range(round(seconds / TICK)):
        pause.wait(max(0.0, started + tick * TICK - time.monotonic()))
        first = begin + timedelta(seconds=tick * TICK)
        if lateness.arm(database, round(rate * TICK), first, 1 / rate) < timedelta(seconds=1):
            raise RuntimeError(f"{rate:,}/s cannot be armed a second ahead on this machine")
    pause.wait(max(0.0, started + AHEAD + seconds - time.monotonic()))


def _figures(rate: int, sides: dict[str, Side]) -> list[Figure]:
    ours, alone, beside = sides["watched"], sides["alone"], sides["reference"]
    stills = {name: side.stills for name, side in sides.items()}
    figures = []
    for name in ("p50", "p99"):
        goal = GOALS[rate].get(name)
        figure = Figure(
            f"{name} at {rate:,}/s", ours.milliseconds(name), "ms", reference=beside.milliseconds(name),
            notes={"with nobody looking": alone.milliseconds(name), "the disk's worst write, s": stills},
        )  # fmt: skip
        if goal is not None:
            figure = figure.with_goal(f"<= {1000 * goal:g} ms or 1.5 of the loops").judged(
                lambda it, most=1000 * goal: it.median <= most or (it.ratio or 9.0) <= 1.5  # type: ignore[misc]
            )
        figures.append(figure)
    figures.append(Figure(f"p99 at {rate:,}/s, nobody looking", alone.milliseconds("p99"), "ms"))
    worst = Figure(f"worst at {rate:,}/s", ours.milliseconds("worst"), "ms", reference=beside.milliseconds("worst"))
    growth = [lag.last / lag.first for lag in ours.lags]
    grown = Figure(f"p99 at {rate:,}/s, last third to first", growth, "times", "< 3: no growing backlog")
    return [*figures, worst, grown.judged(lambda it: it.median < 3)]


def _picture(rate: int, sides: dict[str, Side]) -> str:
    names = {"watched": "3 daemons", "reference": "3 bare loops"}
    # A share of 1 lies at infinity on this scale; the worst is drawn at one in ten thousand.
    points = {
        name: [
            (1 / max(1 - share, 1e-4), 1000 * max(lag, 1e-4))
            for share, lag in zip(SHARES, sides[name].shares, strict=True)
        ]
        for name in names
    }
    return pictures.lines(
        f"Lag at {rate:,} deadlines a second",
        "from the deadline to the commit of the mark; at the right end the worst of all",
        pictures.Axis(
            "share of the runs", (1, 10, 100, 1000, 10_000), True, ("0 %", "90 %", "99 %", "99.9 %", "worst")
        ),
        pictures.Axis("ms", (0.1, 1, 10, 100, 1000), log=True),
        [pictures.Series(label, points[name], dashed=name == "reference") for name, label in names.items()],
    )
