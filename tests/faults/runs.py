"""The runs of `proof_once`: those that must be marked, armed before and during the faults, and those that must not."""

from __future__ import annotations

import random
import threading
import time
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import Connection, Engine, text

from curfew_store import FlowRunControlStore, RunConfiguration, is_transient
from tests.faults import audit

FLOW: Final = UUID("0c0ffee0-0000-4000-8000-000000000001")
KINDS: Final = ("live", "deadline-free", "cancelled", "completed", "timed-out")
BATCH: Final = 100
RETRY_AFTER: Final = 0.05

Run = tuple[UUID, datetime]


def database_now(conn: Connection) -> datetime:
    """The database's clock."""
    moment: datetime = conn.execute(text("SELECT clock_timestamp()")).scalar_one()
    return moment


def planned(rng: random.Random, count: int, now: datetime, span: float) -> tuple[list[Run], list[list[Run]]]:
    """*count* runs to be marked: those armed beforehand, and batches to be armed in turn over *span* seconds.

    Half is armed beforehand: a quarter of that is overdue, the rest falls due evenly over the span, so that the
    daemons have one more deadline to meet at any moment. Of the other half each batch is partly overdue when it
    is armed and partly due within a second.
    """
    before = count // 2
    overdue = before // 4
    armed = [(_run_id(rng), now - timedelta(seconds=rng.uniform(1, 3600))) for _ in range(overdue)]
    armed += [(_run_id(rng), now + timedelta(seconds=rng.uniform(0, span))) for _ in range(before - overdue)]
    rest = count - before
    batches = []
    for start in range(0, rest, BATCH):
        at = now + timedelta(seconds=span * start / rest)
        size = min(BATCH, rest - start)
        batches.append([(_run_id(rng), at + timedelta(seconds=rng.uniform(-1, 1))) for _ in range(size)])
    return armed, batches


def _run_id(rng: random.Random) -> UUID:
    return UUID(int=rng.getrandbits(128), version=4)


def arm(store: FlowRunControlStore, conn: Connection, runs: list[Run]) -> None:
    """Arm the runs and expect them, in the transaction of *conn*; may be repeated."""
    audit.expect(conn, runs)
    store.configure_runs(
        [RunConfiguration(run, FLOW, "overdue", timeout_at_utc=deadline) for run, deadline in runs], connection=conn
    )


def add_bystanders(store: FlowRunControlStore, conn: Connection, rng: random.Random, count: int, now: datetime) -> None:
    """Runs of every other kind, in equal parts; whatever is latched has a deadline that has passed.

    Only the latch then keeps the daemons from marking it.
    """
    by_kind: dict[str, list[UUID]] = {kind: [] for kind in KINDS}
    for number in range(count):
        by_kind[KINDS[number % len(KINDS)]].append(_run_id(rng))
    overdue = now - timedelta(minutes=1)
    deadlines = dict.fromkeys(KINDS, overdue) | {"live": now + timedelta(days=1), "deadline-free": None}
    store.configure_runs(
        [
            RunConfiguration(run, FLOW, kind, timeout_at_utc=deadlines[kind])
            for kind, runs in by_kind.items()
            for run in runs
        ],
        connection=conn,
    )
    for run in by_kind["cancelled"]:
        store.request_cancel(run, "by the user", connection=conn)
    for run in by_kind["completed"]:
        store.complete_run(run, connection=conn)
    for run in by_kind["timed-out"]:
        store.mark_timed_out(run, "by a worker", connection=conn)


def feed(engine: Engine, store: FlowRunControlStore, batches: list[list[Run]], span: float) -> int:
    """Arm the batches evenly over *span* seconds, through outages; returns how often one had to be repeated."""
    begun = time.monotonic()
    pause = threading.Event()
    repeats = 0
    for number, batch in enumerate(batches):
        pause.wait(max(0.0, begun + span * number / len(batches) - time.monotonic()))
        while True:
            try:
                with engine.begin() as conn:
                    arm(store, conn, batch)
                break
            except Exception as error:
                if not is_transient(error):
                    raise
                repeats += 1
                pause.wait(RETRY_AFTER)
    return repeats
