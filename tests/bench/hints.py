"""What hints buy and what they cost: the lag of timeouts of 200 ms, and the throughput of eight producers.

The price is the producer's. PostgreSQL lets transactions that notify commit one after the other, from the write of
the notification to the end of the commit, so what a disk could have synced together is synced in turn.
"""

from __future__ import annotations

import multiprocessing
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from typing import Final
from uuid import UUID, uuid4

from sqlalchemy import create_engine

from curfew_store import FlowRunControlStore
from tests.bench import backlog, lateness
from tests.bench.frame import Bench, BenchDatabase, Figure
from tests.bench.lateness import Lateness

TITLE = "hints: lag of timeouts of 200 ms, and what producers pay"
FLOW: Final = UUID("0c0ffee0-0000-4000-8000-000000000003")
SHORT: Final = timedelta(milliseconds=200)
LONG: Final = timedelta(hours=1)
HORIZON: Final = timedelta(seconds=1)
PRODUCERS: Final = 8
DAEMONS: Final = 3
GOAL: Final = 0.005
ALONE_EVERY: Final = 0.33
"""Seconds between deadlines that come alone: when one is set, no daemon knows of any."""
SETTLING: Final = 30


def run(bench: Bench) -> list[Figure]:
    """The price first, then the lag where the server tells the moments of commits."""
    figures = _prices(bench)
    if bench.tells_commits:
        figures += _lags(bench)
    else:
        bench.say("the server does not keep the moments of commits (track_commit_timestamp): no lag")
    return figures


# The price


def _prices(bench: Bench) -> list[Figure]:
    seconds = 10.0 if bench.full else 1.5
    rates: dict[str, list[float]] = {"none": [], "far": [], "near": []}
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        database = stack.enter_context(bench.database("hints_price"))
        together = stack.enter_context(context.Manager()).Barrier(PRODUCERS)
        pool = stack.enter_context(ProcessPoolExecutor(PRODUCERS, mp_context=context))

        def throughput(kind: str) -> float:
            """Calls per second of all producers together, each a process with one connection."""
            backlog.empty(database)
            calls = [pool.submit(_produce, database.url, kind, seconds, together) for _ in range(PRODUCERS)]
            return sum(each.result() for each in calls)

        throughput("none")  # starts the processes
        for number in range(bench.runs):
            for kind, found in rates.items():
                found.append(throughput(kind))
            said = ", ".join(f"{kind} {found[-1]:,.0f}/s" for kind, found in rates.items())
            bench.say(f"{PRODUCERS} producers, run {number + 1} of {bench.runs}: {said}")
    none = rates["none"]
    return [
        Figure("configure_run, no hints", none, "calls/s"),
        Figure("configure_run, hints on, deadlines beyond the horizon", rates["far"], "calls/s", reference=none),
        Figure("configure_run, hints on, deadlines within the horizon", rates["near"], "calls/s", reference=none),
    ]


def _produce(url: str, kind: str, seconds: float, together: threading.Barrier) -> float:
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://", 1))
    store = FlowRunControlStore(engine, notify_within=None if kind == "none" else HORIZON)
    timeout = LONG if kind == "far" else SHORT
    store.configure_run(uuid4(), FLOW, "price", timeout=timeout)  # connects, and builds the statement
    together.wait()
    began, calls = time.monotonic(), 0
    while time.monotonic() - began < seconds:
        store.configure_run(uuid4(), FLOW, "price", timeout=timeout)
        calls += 1
    rate = calls / (time.monotonic() - began)
    engine.dispose()
    return rate


# The lag


def _lags(bench: Bench) -> list[Figure]:
    alone, rate = (300 if bench.full else 24), 100
    many = round(rate * (30.0 if bench.full else 3.0))
    lags: dict[str, list[Lateness]] = {"alone": [], "steady": [], "nobody listens": [], "loops": []}
    with bench.database("hints_lag") as database:
        for number in range(bench.runs):
            with bench.daemons(database, DAEMONS, {"CURFEW_LISTEN": "true"}):
                lags["alone"].append(_lag(database, alone, ALONE_EVERY, SHORT))
                lags["steady"].append(_lag(database, many, 1 / rate, SHORT))
            with bench.daemons(database, DAEMONS):
                lags["nobody listens"].append(_lag(database, alone, ALONE_EVERY, SHORT))
            # The bare loop polls every second and hears nothing, so its deadlines are set well ahead.
            with bench.reference(database, DAEMONS):
                lags["loops"].append(_lag(database, many, 1 / rate, timedelta(seconds=3)))
            said = ", ".join(f"{name} {_ms(found)[-1]:.1f} ms" for name, found in lags.items())
            bench.say(f"p99, run {number + 1} of {bench.runs}: {said}")

    def judged(name: str, found: list[Lateness]) -> Figure:
        figure = Figure(name, _ms(found), "ms", "<= 5 ms or 1.5 of the loops", reference=_ms(lags["loops"]))
        return figure.judged(lambda it: it.median <= 1000 * GOAL or (it.ratio or 9.0) <= 1.5)

    return [
        judged("p99 of 200 ms timeouts that come alone", lags["alone"]),
        judged(f"p99 of 200 ms timeouts at {rate}/s", lags["steady"]),
        Figure("median of 200 ms timeouts at 100/s", _ms(lags["steady"], "p50"), "ms"),
        Figure("median of those that come alone", _ms(lags["alone"], "p50"), "ms"),
        Figure("median of those that come alone, nobody listens", _ms(lags["nobody listens"], "p50"), "ms"),
    ]


def _ms(lags: list[Lateness], name: str = "p99") -> list[float]:
    return [1000 * float(getattr(each, name)) for each in lags]


def _lag(database: BenchDatabase, count: int, every: float, timeout: timedelta) -> Lateness:
    """Of *count* runs with this timeout, one *every* so many seconds, on daemons that have settled."""
    backlog.empty(database)
    backlog.checkpoint(database)
    store = FlowRunControlStore(database.engine, notify_within=HORIZON)
    # Long enough for all to hear, and for those that are not needed to become standbys.
    for _ in range(SETTLING):
        _pause(0.05)
        store.configure_run(uuid4(), FLOW, "settling", timeout=timedelta(milliseconds=100))
    began = time.monotonic()
    for number in range(count):
        _pause(began + number * every - time.monotonic())
        store.configure_run(uuid4(), FLOW, "lag", timeout=timeout)
    backlog.wait_until_marked(database, count + SETTLING)
    return lateness.measured(database)


def _pause(seconds: float) -> None:
    threading.Event().wait(max(0.0, seconds))
