"""`curfewd once` as a function: it sweeps until nothing is due, and waits for held runs only so long."""

from __future__ import annotations

import itertools
import threading
from types import SimpleNamespace
from uuid import UUID

import pytest
import sqlalchemy.exc

from curfew_daemon import once
from curfew_daemon.failures import DatabaseRefusal
from curfew_daemon.once import sweep_until_done
from curfew_store.errors import SchemaMismatch
from tests.conftest import Database
from tests.integration.contract.rows import Rows
from tests.integration.proxy import Stopwatch
from tests.integration.settings import settings_for

HOLD = "SELECT 1 FROM flow_run_controls WHERE run_id = :run FOR UPDATE"


def _overdue(rows: Rows) -> int:
    return int(
        rows.sql("SELECT count(*) FROM flow_run_controls WHERE timed_out_at_utc IS NULL AND timeout_at_utc < now()")[0][
            0
        ]
    )


def test_everything_that_is_due_is_marked(rows: Rows, database: Database) -> None:
    """2,000 runs in batches of 300; what is not due stays."""
    rows.sql(
        "INSERT INTO flow_run_controls (run_id, timeout_at_utc) "
        "SELECT gen_random_uuid(), now() - interval '1 minute' FROM generate_series(1, 2000)"
    )
    active = rows.insert("active")
    before = rows.row(active)
    outcome = sweep_until_done(settings_for(database, CURFEW_BATCH_SIZE="300"), patience=10)
    assert (outcome.marked, outcome.overdue_remains, _overdue(rows)) == (2000, False, 0)
    assert outcome.lag_max is not None
    assert outcome.lag_max >= 60
    assert not rows.changed(before, active)


def test_nothing_due_is_done_at_once(database: Database) -> None:
    """No runs, no lag, no waiting."""
    outcome = sweep_until_done(settings_for(database), patience=60)
    assert (outcome.marked, outcome.lag_max, outcome.overdue_remains) == (0, None, False)


def test_held_runs_are_waited_for(rows: Rows, database: Database) -> None:
    """Released within the patience, they are marked."""
    held: UUID = rows.insert("overdue")
    free = rows.insert("overdue")
    marked = threading.Event()

    def release_when_the_free_one_is_marked() -> None:
        with Rows(database.url).held(HOLD, run=held):
            holding.set()
            while not rows.sql("SELECT timed_out_at_utc FROM flow_run_controls WHERE run_id = :run", run=free)[0][0]:
                pass
        marked.set()

    holding = threading.Event()
    helper = threading.Thread(target=release_when_the_free_one_is_marked)
    helper.start()
    assert holding.wait(20)
    outcome = sweep_until_done(settings_for(database), patience=60)
    helper.join()
    assert marked.is_set()
    assert (outcome.marked, outcome.overdue_remains) == (2, False)


def test_patience_runs_out(rows: Rows, database: Database) -> None:
    """Runs that stay held are reported, and those that were free are marked."""
    held, _free = rows.insert("overdue"), rows.insert("overdue")
    with rows.held(HOLD, run=held), Stopwatch() as watch:
        outcome = sweep_until_done(settings_for(database), patience=0.2)
    assert (outcome.marked, outcome.overdue_remains) == (1, True)
    assert watch.seconds < 10


def test_marking_takes_nothing_from_the_patience(
    rows: Rows, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the first sweep took, held runs are still waited for, and only the wait counts as waited."""
    held, _free = rows.insert("overdue"), rows.insert("overdue")
    slept: list[float] = []
    hours = itertools.count(step=3600)
    with rows.held(HOLD, run=held) as holder:

        def sleep(seconds: float) -> None:
            slept.append(seconds)
            if seconds:
                holder.rollback()

        monkeypatch.setattr(once, "time", SimpleNamespace(monotonic=lambda: next(hours), sleep=sleep))
        outcome = sweep_until_done(settings_for(database), patience=10)
    assert (outcome.marked, outcome.overdue_remains) == (2, False)
    assert 0 < outcome.waited == sum(slept) <= 10


def test_errors_of_the_database_are_raised(rows: Rows, database: Database, empty_database: Database) -> None:
    """Cron tries again by itself: no database, no schema, another engine."""
    with pytest.raises(sqlalchemy.exc.OperationalError):
        sweep_until_done(settings_for("host=/nowhere"), patience=10)
    with pytest.raises(SchemaMismatch):
        sweep_until_done(settings_for(empty_database), patience=10)
    rows.sql("CREATE TABLE flow_runs ()")
    with pytest.raises(DatabaseRefusal):
        sweep_until_done(settings_for(database), patience=10)
