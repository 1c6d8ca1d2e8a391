"""The usual alternative to a sweep: one APScheduler date job per run, in APScheduler's own SQLAlchemy job store.

`main` is the process of a trigger service that arms its runs in the store, adds a job for each, and marks it in that
job. Scheduler and producer share the process, since
APScheduler 3 allows only one process per job store. When all is marked, or nothing was for a while, the process
prints what it produced as JSON and ends.

It is given what helps it: no job is dropped for being late (the default drops those of more than a second),
connections are pooled, and store and jobs have pools of their own.
"""

from __future__ import annotations

import json
import sys
import time
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
from apscheduler.schedulers.background import BackgroundScheduler
from sqlalchemy import Engine, create_engine

from curfew_store import FlowRunControlStore
from curfew_store.enforcement import OVERDUE_REASON
from tests.bench.load import FLOW, Load, Produced, produce

WORKERS = 10  # APScheduler's default
PATIENCE = 30.0  # seconds without a mark
_LOOK_EVERY = 0.25

# A job is kept as the name of a function and its arguments, so what the function uses belongs to the module, and
# the module must be imported by its name: run as `__main__` it would be there twice.
_stores: dict[str, FlowRunControlStore] = {}


def mark(run_id: str) -> None:
    """The job: mark one run as timed out."""
    _stores["runs"].mark_timed_out(UUID(run_id), OVERDUE_REASON)


def scheduler_on(engine: Engine) -> Any:
    """A scheduler, not started, with its jobs in that database."""
    return BackgroundScheduler(
        jobstores={"default": SQLAlchemyJobStore(engine=engine)},
        executors={"default": {"type": "threadpool", "max_workers": WORKERS}},
        job_defaults={"misfire_grace_time": None},
        timezone=UTC,
    )


def run(url: str, load: Load) -> Produced:
    """Arm the load, have every run marked by a job of its own, and return what was armed."""
    engine, jobs_engine = create_engine(url, pool_size=WORKERS + 1), create_engine(url)
    store = _stores["runs"] = FlowRunControlStore(engine)
    scheduler = scheduler_on(jobs_engine)
    scheduler.start()

    def arm(run_id: UUID, deadline: datetime) -> None:
        store.configure_run(run_id, FLOW, "lag", timeout_at_utc=deadline)
        scheduler.add_job("tests.bench.apscheduler_rival:mark", "date", run_date=deadline, args=[str(run_id)])

    try:
        produced = produce(load, arm)
        wait_until_marked(engine, load.count)
    finally:
        scheduler.shutdown()
        engine.dispose()
    return produced


def wait_until_marked(engine: Engine, count: int) -> None:
    """Return when *count* runs are marked, or when for `PATIENCE` seconds none more was."""
    marked, since = -1, time.monotonic()
    while time.monotonic() < since + PATIENCE:
        with engine.connect() as conn:
            now = conn.exec_driver_sql(
                "SELECT count(*) FROM flow_run_controls WHERE timed_out_at_utc IS NOT NULL"
            ).scalar_one()
        if now >= count:
            return
        if now > marked:
            marked, since = now, time.monotonic()
        time.sleep(_LOOK_EVERY)


def main(arguments: list[str]) -> None:
    """The whole process, given URL, RATE, SECONDS and AHEAD."""
    url, rate, seconds, ahead = arguments
    produced = run(url, Load(float(rate), float(seconds), float(ahead)))
    runs = [(str(run_id), deadline.isoformat()) for run_id, deadline in produced.runs]
    json.dump({"runs": runs, "leads": produced.leads}, sys.stdout)
