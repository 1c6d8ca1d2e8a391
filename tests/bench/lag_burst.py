"""How late the last of many deadlines is met that fall due in the same instant: two daemons, beside two loops."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from functools import partial

from tests.bench import backlog, lateness
from tests.bench.frame import Bench, BenchDatabase, Figure
from tests.bench.lateness import Lateness

TITLE = "lag of many deadlines in the same instant"
DAEMONS = 2
CROWDED = {"CURFEW_DRAIN_CONNECTIONS": "4"}
"""Twice the default: what the daemons lose by getting into each other's way."""

LEAD = 2.0
"""Seconds that server and daemons have before the instant, with everything armed and written."""


def run(bench: Bench) -> list[Figure]:
    """Ours, ours with more connections, and the reference in turn."""
    if not bench.tells_commits:
        bench.say("the server does not keep the moments of commits (track_commit_timestamp): nothing to measure")
        return []
    count = 100_000 if bench.full else 30_000
    ours: list[Lateness] = []
    crowded: list[Lateness] = []
    beside: list[Lateness] = []
    with bench.database("lag_burst") as database:
        for number in range(bench.runs):
            ours.append(_burst(bench, database, count, partial(bench.daemons, database, DAEMONS)))
            crowded.append(_burst(bench, database, count, partial(bench.daemons, database, DAEMONS, CROWDED)))
            beside.append(_burst(bench, database, count, partial(bench.reference, database, DAEMONS)))
            bench.say(
                f"run {number + 1} of {bench.runs}: the last after {ours[-1].worst:.2f} s, with four connections each "
                f"after {crowded[-1].worst:.2f} s, of the loops after {beside[-1].worst:.2f} s"
            )
    limit = 1.5 * count / 100_000
    last = Figure(
        f"the last of {count:,}, two daemons", [each.worst for each in ours], "s",
        f"<= {limit:g} s or 1.5 of two loops", reference=[each.worst for each in beside],
    )  # fmt: skip
    half = Figure("half of them", [each.p50 for each in ours], "s", reference=[each.p50 for each in beside])
    more = Figure("the last, four connections each", [each.worst for each in crowded], "s", reference=last.values)
    return [last.judged(lambda it: it.median <= limit or (it.ratio or 9.0) <= 1.5), half, more]


def _burst(
    bench: Bench, database: BenchDatabase, count: int, enforcing: Callable[[], AbstractContextManager[object]]
) -> Lateness:
    backlog.empty(database)
    with enforcing():
        # Time for the arming itself, which is measured and not guessed: armed late, it is armed anew.
        ahead = 2 * LEAD
        while True:
            instant = lateness.now(database) + timedelta(seconds=ahead)
            left = lateness.arm(database, count, instant, 0.0)
            backlog.checkpoint(database)
            if left >= timedelta(seconds=LEAD):
                break
            backlog.empty(database)
            ahead *= 2
        threading.Event().wait(max(0.0, (instant - lateness.now(database)).total_seconds()))
        backlog.wait_until_marked(database, count)
    return lateness.measured(database)
