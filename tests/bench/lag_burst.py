"""How late the last of many deadlines is met that fall due in the same instant: two daemons, beside two loops."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from datetime import timedelta

from tests.bench import backlog, lateness
from tests.bench.frame import Bench, BenchDatabase, Figure
from tests.bench.lateness import Lateness

TITLE = "lag of many deadlines in the same instant"
DAEMONS = 2
LEAD = 2.0
"""Seconds that server and daemons have before the instant, with everything armed and written."""


def run(bench: Bench) -> list[Figure]:
    """Ours and the reference in turn."""
    if not bench.tells_commits:
        bench.say("the server does not keep the moments of commits (track_commit_timestamp): nothing to measure")
        return []
    count = 100_000 if bench.full else 30_000
    ours: list[Lateness] = []
    beside: list[Lateness] = []
    with bench.database("lag_burst") as database:
        for number in range(bench.runs):
            ours.append(_burst(bench, database, count, reference=False))
            beside.append(_burst(bench, database, count, reference=True))
            bench.say(
                f"run {number + 1} of {bench.runs}: the last after {ours[-1].worst:.2f} s, "
                f"of the loops after {beside[-1].worst:.2f} s"
            )
    limit = 1.5 * count / 100_000
    last = Figure(
        f"the last of {count:,}, two daemons", [each.worst for each in ours], "s",
        f"<= {limit:g} s or 1.5 of two loops", reference=[each.worst for each in beside],
    )  # fmt: skip
    half = Figure("half of them", [each.p50 for each in ours], "s", reference=[each.p50 for each in beside])
    return [last.judged(lambda it: it.median <= limit or (it.ratio or 9.0) <= 1.5), half]


def _burst(bench: Bench, database: BenchDatabase, count: int, *, reference: bool) -> Lateness:
    backlog.empty(database)
    with ExitStack() as stack:
        if reference:
            stack.enter_context(bench.reference(database, DAEMONS))
        else:
            stack.enter_context(bench.daemons(database, DAEMONS))
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
