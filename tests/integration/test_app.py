"""The composition root in this process: the wall clock has no say, and no event of the scheduler ends the loop."""

from __future__ import annotations

import datetime as real
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import apscheduler.executors.base
import apscheduler.schedulers.base
import psycopg
import pytest
from apscheduler.events import EVENT_JOB_MISSED, JobEvent
from sqlalchemy import Connection

from curfew_daemon import app, events, observer
from curfew_daemon.app import Daemon
from curfew_daemon.enforcer import Enforcer
from curfew_daemon.lifecycle import Action, Exit
from curfew_daemon.observer import Observer, Reading
from curfew_daemon.passes import Claims
from curfew_daemon.results import DatabaseState
from curfew_daemon.status.facts import Verdict
from curfew_daemon.wake import Wake
from tests.conftest import Database
from tests.integration.contract.rows import Rows
from tests.integration.sessions import eventually
from tests.integration.settings import settings_for

POLL = 1.5
HELPERS = 3
"""Connections beside the sweep's own that a daemon has for a deep backlog."""


class Switch:
    """In the place of the process's signals: a stop that a test gives, without a signal."""

    def __init__(self, **_: object) -> None:
        self.stop_signal: str | None = None
        self._changed = threading.Event()

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass

    def stop(self) -> None:
        self.stop_signal = "SIGTERM"
        self._changed.set()

    def wake(self) -> None:
        self._changed.set()

    def wait(self, timeout: float) -> Action:
        self._changed.wait(timeout)
        self._changed.clear()
        return Action.WOKEN if self.stop_signal is None else Action.STOP


class SteppedClock(real.datetime):
    """A wall clock that can be set; what APScheduler asks for the time."""

    step = real.timedelta(0)

    @classmethod
    def now(cls, tz: real.tzinfo | None = None) -> real.datetime:  # type: ignore[override]
        return real.datetime.now(tz) + cls.step


class Running:
    """A daemon whose loop runs in a thread."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.code: Exit | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self.code = self.daemon.run()

    def count(self, sample: str, **labels: str) -> float:
        return self.daemon._metrics.registry.get_sample_value(sample, labels) or 0.0

    def stop(self) -> Exit | None:
        self.daemon._signals.stop()  # type: ignore[attr-defined]
        self._thread.join(30)
        return self.code


@pytest.fixture
def start(database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Running]]:
    """Starts the daemon that a test has prepared by then; it is stopped at the end."""
    monkeypatch.setattr(app, "Signals", Switch)
    for module in (apscheduler.schedulers.base, apscheduler.executors.base):
        monkeypatch.setattr(module, "datetime", SteppedClock)
    monkeypatch.setattr(SteppedClock, "step", real.timedelta(0))
    events.configure("json", "error")
    settings = settings_for(
        database,
        CURFEW_HTTP_PORT="0",
        CURFEW_POLL_INTERVAL=str(POLL),
        CURFEW_OBSERVE_INTERVAL="0.5",
        CURFEW_OBSERVE_BUDGET="0.5",
        CURFEW_DRAIN_CONNECTIONS=str(1 + HELPERS),
    )
    started: list[Running] = []

    def starting() -> Running:
        started.append(Running(Daemon(settings)))
        return started[-1]

    yield starting
    for each in started:
        assert each.stop() is Exit.OK


def await_marked(rows: Rows, run: object) -> None:
    asked = "SELECT timed_out_at_utc IS NOT NULL FROM flow_run_controls WHERE run_id = :run"
    eventually(lambda: rows.sql(asked, run=run)[0][0], "the run is marked")


def lateness(rows: Rows, run: object) -> float:
    asked = "SELECT extract(epoch FROM timed_out_at_utc - timeout_at_utc) FROM flow_run_controls WHERE run_id = :run"
    return float(rows.sql(asked, run=run)[0][0])


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_step_of_the_wall_clock_delays_no_deadline(rows: Rows, start: Callable[[], Running], hours: int) -> None:
    """Set back or forward by an hour while the loop runs, runs are marked as before."""
    running = start()
    await_marked(rows, rows.insert("overdue"))
    SteppedClock.step = real.timedelta(hours=hours)
    sweeps = running.count("curfew_sweeps_total", outcome="ok")
    for delay in ("700 ms", "1900 ms", "0 ms"):
        run = rows.insert(timeout_at_utc=f"now() + interval '{delay}'")
        await_marked(rows, run)
        assert lateness(rows, run) < 2 * POLL
    assert running.count("curfew_sweeps_total", outcome="ok") > sweeps
    assert running.count("curfew_observation_duration_seconds") > 0


def test_deadlines_are_met_within_milliseconds_by_the_median(rows: Rows, start: Callable[[], Running]) -> None:
    """Twenty deadlines armed ahead: the median lateness is a small part of the poll interval."""
    start()
    await_marked(rows, rows.insert("overdue"))
    runs = [rows.insert(timeout_at_utc=f"now() + interval '{1500 + 100 * n} ms'") for n in range(20)]
    for run in runs:
        await_marked(rows, run)
    late = sorted(lateness(rows, run) for run in runs)
    assert late[0] >= 0
    assert late[10] < POLL / 4


def test_a_job_that_raises_stays_scheduled(
    rows: Rows, start: Callable[[], Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A defect in a job is told, and the job runs again after a poll interval."""
    calls: list[float] = []
    sweep = Daemon._sweep_job

    def flawed(daemon: Daemon) -> float:
        calls.append(time.monotonic())
        if len(calls) <= 2:
            raise ZeroDivisionError("planted")
        return sweep(daemon)

    monkeypatch.setattr(Daemon, "_sweep_job", flawed)
    running = start()
    await_marked(rows, rows.insert("overdue"))
    assert running.count("curfew_scheduler_events_total", event="error") == 2
    assert calls[1] - calls[0] >= POLL * 0.9


def test_a_job_that_was_missed_runs_at_once(rows: Rows, start: Callable[[], Running]) -> None:
    """An executor that gives up on a run (it never should) is answered with another run."""
    running = start()
    await_marked(rows, rows.insert("overdue"))
    told: list[Any] = []
    scheduler = running.daemon._scheduler
    scheduler.add_listener(told.append, EVENT_JOB_MISSED)
    scheduler._dispatch_event(JobEvent(EVENT_JOB_MISSED, "observe", None))
    assert len(told) == 1
    assert running.count("curfew_scheduler_events_total", event="missed") == 1
    await_marked(rows, rows.insert("overdue"))


def test_a_wake_up_that_the_scheduler_drops_is_made_up_for(
    rows: Rows, start: Callable[[], Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Poked while the job runs, APScheduler refuses (max instances); the job runs again as soon as it has ended."""
    entered, leave, ends = threading.Event(), threading.Event(), [0.0]
    begins: list[float] = []

    def slow(_daemon: Daemon) -> float:
        begins.append(time.monotonic())
        entered.set()
        leave.wait(30)
        ends[0] = time.monotonic()
        return 3600.0

    monkeypatch.setattr(Daemon, "_sweep_job", slow)
    running = start()
    assert entered.wait(30)
    running.daemon._poke("sweep")
    dropped = "curfew_scheduler_events_total"
    eventually(lambda: running.count(dropped, event="max_instances") == 1, "the wake-up is dropped")
    leave.set()
    eventually(lambda: len(begins) == 2, "the job runs again")
    assert begins[1] - ends[0] < 60


def test_every_event_of_the_scheduler_is_counted(rows: Rows, start: Callable[[], Running]) -> None:
    """In good times jobs are executed, and nothing else happens."""
    running = start()
    executed = "curfew_scheduler_events_total"
    eventually(lambda: running.count(executed, event="executed") >= 4, "jobs are executed")
    assert [running.count(executed, event=event) for event in ("error", "missed", "max_instances")] == [0, 0, 0]


def test_a_stop_ends_what_further_connections_have_in_hand(
    rows: Rows, start: Callable[[], Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may outlast the sweep: after the grace their statements are cancelled, and nothing is left behind."""
    monkeypatch.setattr("curfew_daemon.sweeper.DEEP", 2)
    monkeypatch.setattr("curfew_daemon.passes.FIRST_BATCH", 2)
    monkeypatch.setattr("curfew_daemon.crew.LONGEST_WAIT", 0.01)
    one_pass = Claims.one_pass

    def slow(claims: Claims, conn: Connection, *args: Any, **kwargs: Any) -> int:
        if threading.current_thread().name.startswith("curfewd-crew"):
            conn.exec_driver_sql("SELECT pg_sleep(60)")
        return one_pass(claims, conn, *args, **kwargs)

    monkeypatch.setattr(Claims, "one_pass", slow)
    runs = [rows.insert("overdue") for _ in range(9)]
    running = start()
    for run in runs:
        await_marked(rows, run)
    asleep = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"
    eventually(lambda: rows.sql(asleep)[0][0] == HELPERS, "the further connections have something in hand")
    running.daemon._settings = running.daemon._settings.model_copy(update={"shutdown_grace": 0.1})
    assert running.stop() is Exit.OK
    assert not [each for each in threading.enumerate() if each.name.startswith("curfewd-crew")]
    assert not running.daemon.abandoned
    assert rows.sql(asleep)[0][0] == 0


@pytest.fixture
def draining(
    rows: Rows, start: Callable[[], Running], monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Running, threading.Event]]:
    """A daemon in its first sweep, with six of twenty runs marked; the third claim waits for the event."""
    monkeypatch.setattr("curfew_daemon.passes.FIRST_BATCH", 2)
    claim, claims, go_on = Claims._claim, itertools.count(1), threading.Event()

    def held(*args: Any) -> Any:
        if next(claims) == 3:
            go_on.wait(30)
        return claim(*args)

    monkeypatch.setattr(Claims, "_claim", held)
    for _ in range(20):
        rows.insert("overdue")
    running = start()
    eventually(lambda: running.count("curfew_runs_timed_out_total") == 6, "two batches are marked")
    yield running, go_on
    go_on.set()


def test_a_daemon_that_drains_is_ready(draining: tuple[Running, threading.Event]) -> None:
    """Its first sweep need not have ended: a marked batch makes it ready, the database up and the alert's gauge new."""
    running, _ = draining
    eventually(lambda: running.daemon._readiness() == (True, "ok"), "it is ready")
    assert running.count("curfew_database_up") == 1
    assert running.count("curfew_last_successful_sweep_timestamp_seconds") > 1.6e9
    assert running.daemon._board.facts().verdict is Verdict.LATE  # and not: starting
    assert running.count("curfew_sweeps_total", outcome="ok") == 0


def test_a_drain_in_hand_follows_the_settings(draining: tuple[Running, threading.Event]) -> None:
    """It ends with the batch in hand, and goes on at once with the new ones."""
    running, go_on = draining
    running.daemon._settings = running.daemon._settings.model_copy()
    go_on.set()
    eventually(lambda: running.count("curfew_runs_timed_out_total") == 20, "the rest is marked")
    assert running.count("curfew_wakeups_total", reason="more") == 1


def test_a_reading_that_ends_after_the_database_has_gone_is_not_fresh(
    start: Callable[[], Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No further one is made until the database is back, so what it saw must not count meanwhile."""
    run_once, serve = Observer.run_once, Enforcer.serve
    first, reading, gone = threading.Event(), threading.Event(), threading.Event()

    def late(observer: Observer, *, runs: bool) -> Reading:
        seen = run_once(observer, runs=runs)
        if first.is_set():
            reading.set()
            gone.wait(30)
        first.set()
        return seen

    def outage(enforcer: Enforcer, reason: str | None = None) -> Wake:
        if not reading.is_set():
            return serve(enforcer, reason)
        enforcer._enter(DatabaseState.UNREACHABLE, psycopg.OperationalError("planted"))
        gone.set()
        return Wake(POLL, "retry")

    monkeypatch.setattr(Observer, "run_once", late)
    monkeypatch.setattr(Enforcer, "serve", outage)
    running = start()
    eventually(lambda: running.count("curfew_observation_up") == 1, "the table is read")
    eventually(gone.is_set, "the database goes during the next reading")
    eventually(lambda: running.daemon._pacer.idle("observe"), "which ends")
    assert running.count("curfew_observation_up") == 0


def test_a_slow_page_is_no_failed_observation(
    rows: Rows, start: Callable[[], Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the whole takes too long the page shows the gauges alone, and all of it once it is in time."""
    rows.insert("active")
    monkeypatch.setattr(observer, "WITHOUT_PAGE", 0.0)
    with monkeypatch.context() as slow:
        slow.setattr(Observer, "_whole", lambda _self, conn, _runs: conn.exec_driver_sql("SELECT pg_sleep(9)"))
        running = start()
        eventually(lambda: running.daemon._board.facts().seen, "the table is read")
        seen = running.daemon._board.facts().seen
        assert seen is not None
        assert (seen.gauges.armed, seen.table) == (1, None)
    eventually(lambda: running.daemon._board.facts().seen.table is not None, "the page is whole")  # type: ignore[union-attr]
    assert running.count("curfew_observation_failures_total") == 0


def test_a_reading_that_finds_nothing_to_do_spares_a_poll(rows: Rows, start: Callable[[], Running]) -> None:
    """The planned sweep is put off to a poll interval after the reading, unless a deadline is near or overdue."""
    running = start()
    daemon = running.daemon
    daemon._settings = daemon._settings.model_copy(update={"poll_interval": 7.0, "observe_interval": 300.0})

    def due_at() -> float:
        return daemon._pacer._jobs["sweep"].due_at

    def read() -> None:
        last = daemon._board.facts().seen
        daemon._pacer.wake("observe")
        eventually(lambda: daemon._board.facts().seen.at > last.at, "it is read")  # type: ignore[union-attr]
        eventually(lambda: daemon._pacer.idle("observe"), "the reading ended")

    eventually(lambda: daemon._board.facts().seen, "the table is read")
    daemon._enforcer.nudge()
    daemon._pacer.wake("sweep")
    eventually(lambda: due_at() - time.monotonic() > 3, "the next poll is planned")
    planned = due_at()
    read()
    assert planned < due_at() <= time.monotonic() + 7
    planned = due_at()
    rows.insert(timeout_at_utc="now() + interval '6 seconds'")
    read()
    assert due_at() == planned
