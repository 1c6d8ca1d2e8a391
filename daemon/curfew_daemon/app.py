"""The composition root: builds every part, connects them, and lives through the process's life.

The only module that knows APScheduler. It runs three jobs there, ``sweep``, ``observe`` and ``purge``, each in a thread
of its own; `Pacer` decides on the monotonic clock when they run, and the main thread sleeps for it and takes
signals meanwhile. Longer than other modules, so that all that happens between the parts stands in one place.
"""

from __future__ import annotations

import gc
import platform
import random
import sys
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, Final
from uuid import UUID

from apscheduler.events import (
    EVENT_JOB_ERROR,
    EVENT_JOB_EXECUTED,
    EVENT_JOB_MAX_INSTANCES,
    EVENT_JOB_MISSED,
    JobEvent,
)
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.base import BaseTrigger

from curfew_daemon import config, events
from curfew_daemon.config import Settings
from curfew_daemon.conninfo import describe, read_database_url, redact
from curfew_daemon.events import Events
from curfew_daemon.failures import REMEDIES, is_database_error, shown
from curfew_daemon.hearing import Hearing
from curfew_daemon.http import HttpServer, bind, create_app, url_of
from curfew_daemon.lifecycle import Action, Exit, Heartbeat, Notifier, Signals
from curfew_daemon.metrics import Metrics
from curfew_daemon.observer import Reading
from curfew_daemon.pacing import Pacer
from curfew_daemon.purge_job import PurgeJob
from curfew_daemon.results import DatabaseState, MarkedBatch, Observation, SweepResult
from curfew_daemon.status import Board, Identity, StatusPage
from curfew_daemon.wait_bounds import MARGIN
from curfew_daemon.wake import observer_pause
from curfew_daemon.workers import make_enforcer, make_observer

__all__ = ["Daemon"]

_LONG_AGO: Final = datetime(2000, 1, 1, tzinfo=UTC)
_NEVER: Final = datetime(9999, 1, 1, tzinfo=UTC)
_EXECUTORS: Final = {"sweep": "default", "observe": "observe", "purge": "purge"}
_READY_WITHIN: Final = 10.0
_GIVE_WAY_AFTER: Final = 0.0005


class _OnDemand(BaseTrigger):  # type: ignore[misc]  # APScheduler is not typed
    """A trigger that never fires: the job runs when `Pacer` pokes it and at no other time."""

    def get_next_fire_time(self, previous_fire_time: datetime | None, now: datetime) -> datetime:  # noqa: ARG002
        return _NEVER


class Daemon:
    """``curfewd run``: one process that enforces until it is told to stop. `run` may be called once."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._events = Events()
        self._metrics = Metrics(version=version("curfewd"))
        self._board = self._make_board()
        self._status_page = StatusPage(self._board.facts, late_after=lambda: self._board.late_after)
        self._heartbeat = Heartbeat()
        self._notifier = Notifier()
        self._signals = Signals(on_second=self._events.second_signal)
        self._ready_sent = False
        self._observe_from = 0.0  # monotonic
        self._exit = Exit.OK
        self.abandoned = False
        """Whether a thread was left behind that still waits for the database."""
        self._job_ended = threading.Event()
        self._scheduler = self._make_scheduler()
        self._pacer = Pacer(self._poke, self._signals.wake)
        self._enforcer = make_enforcer(self._current, self, self._events, rouse=lambda: self._pacer.wake("sweep"))
        self._observer = make_observer(self._current, lambda: self._enforcer.slack)
        self._purge = PurgeJob(
            self._current, self._metrics, self._events, may_run=lambda: self._enforcer.state is DatabaseState.UP
        )
        self._schedule({"sweep": self._sweep_job, "observe": self._observe_job, "purge": self._purge.run})
        self._hearing = Hearing(self._current, self._metrics, self._events, self._enforcer.hinted)

    def run(self) -> Exit:
        """Enforce until SIGTERM or SIGINT; returns the exit code. For the main thread.

        Raises `BindFailed` if the address for HTTP cannot be used.
        """
        settings = self._settings
        if settings.ignored:
            self._events.settings_ignored_service_links(settings.ignored)
        sock = bind(settings.http_host, settings.http_port)
        url = url_of(sock)  # before the server has the socket, which it closes if it dies at once
        app = create_app(
            render=self._metrics.render,
            beat_age=self._heartbeat.age,
            readiness=self._readiness,
            status=self._status_page,
        )
        server = HttpServer(app, sock, self._events.http_died)
        with self._signals:
            server.start()
            self._events.http_listening(url)
            self._events.started(**self._described())
            self._scheduler.start()
            self._hearing.start()
            # What start-up made stays: kept out of every later collection, which would otherwise walk it again
            # and again during a drain.
            gc.collect()
            gc.freeze()
            # A thread that renders a page gives way to the sweep after this long; Python's own 5 ms would be seen in
            # the lag of every deadline that falls into a scrape.
            sys.setswitchinterval(_GIVE_WAY_AFTER)
            try:
                self._pace()
            finally:
                self._shut_down(server)
        self._events.stopped(int(self._exit))
        return self._exit

    def _current(self) -> Settings:
        return self._settings

    # The loop of the main thread.

    def _pace(self) -> None:
        while True:
            action = self._signals.wait(self._pacer.run_due())
            if action is Action.RELOAD:
                self._reload()
            if action is Action.STOP or self._exit is not Exit.OK:
                return

    def _reload(self) -> None:
        self._notifier.reloading()
        try:
            new, refused = config.reload(self._settings)
        except config.SettingsError as error:
            self._events.reload_failed(error)
        else:
            changed = [config.VARIABLES[name] for name, value in new if value != getattr(self._settings, name)]
            self._settings = new
            events.set_level(new.log_level)
            self._events.reloaded(changed)
            if refused:
                self._events.reload_refused(refused)
            # Every link sees that the settings are others; a rotated secret shows now, not at the next outage.
            self._enforcer.nudge()
            self._pacer.wake("sweep")
            self._pacer.wake("purge")
            self._observe_soon()
            self._hearing.reconnect()
        self._notifier.ready(self._status())

    def _shut_down(self, server: HttpServer) -> None:
        if self._signals.stop_signal is not None:
            self._events.stopping(self._signals.stop_signal)
        self._notifier.stopping()
        self._enforcer.stop()
        self._purge.stop()
        if not self._sweep_ends_within(self._settings.shutdown_grace):
            self._events.shutdown_grace_exceeded(self._settings.shutdown_grace)
            self._enforcer.cancel()
            self.abandoned = not self._sweep_ends_within(MARGIN)
        if not self.abandoned:
            self._enforcer.close()
        self._end_purge()
        if self._pacer.idle("observe"):
            self._observer.close()
        else:
            self.abandoned = True  # gauges are not worth waiting for
        self._hearing.stop()
        self._scheduler.shutdown(wait=False)
        server.stop()

    def _end_purge(self) -> None:
        if not self._pacer.idle("purge"):
            self._purge.cancel()  # what it deletes now the next daemon can delete as well
        if self._ends_within("purge", MARGIN):
            self._purge.close()
        else:
            self.abandoned = True

    def _sweep_ends_within(self, seconds: float) -> bool:
        """With its crew, whose statements may outlast it."""
        give_up = time.monotonic() + seconds
        return self._ends_within("sweep", seconds) and self._enforcer.crew_ends_within(give_up - time.monotonic())

    def _ends_within(self, job: str, seconds: float) -> bool:
        give_up = time.monotonic() + seconds
        while not self._pacer.idle(job) and (remaining := give_up - time.monotonic()) > 0:
            self._job_ended.wait(remaining)
            self._job_ended.clear()
        return self._pacer.idle(job)

    # What the workers report, each from its own thread.

    def woke(self, reason: str) -> None:
        self._metrics.woke(reason)

    def marked(self, batch: MarkedBatch) -> None:
        self._metrics.marked(batch)
        self._board.marked(batch)
        self._events.marked(batch)

    def refused(self, run_id: UUID, retry_in: float, error: BaseException) -> None:
        self._metrics.refused()
        self._events.run_refused(run_id, retry_in, error)

    def crew_failed(self, error: Exception) -> None:
        self._events.drain_connection_failed(self._redacted(error))

    def crew_worked(self) -> None:
        self._events.drain_connections_recovered()

    def swept(self, result: SweepResult) -> None:
        self._metrics.swept(result)
        self._board.swept()
        self._events.swept(result)

    def progressed(self) -> None:
        self._metrics.progressed()

    def sweep_failed(self, error: BaseException) -> None:
        self._metrics.sweep_failed()
        if not is_database_error(error):
            self._events.sweep_failed(error)

    def database(self, old: DatabaseState | None, new: DatabaseState, error: BaseException | None) -> None:
        self._metrics.database(new)
        self._board.database(new)
        said = None if error is None else self._redacted(error)
        self._events.database(old, new, REMEDIES.get(new) or None, said)
        self._notifier.status(self._status())
        if new is DatabaseState.UP:
            self._observe_soon()
        if new is DatabaseState.UPSTREAM_ENGINE:
            self._refuse_upstream()

    def beat(self) -> None:
        self._heartbeat.beat()
        self._metrics.beat()
        if not self._ready_sent:
            self._ready_sent = True
            self._notifier.ready(self._status())
        self._notifier.watchdog()

    # The jobs.

    def _sweep_job(self) -> float:
        return self._enforcer.serve().delay

    def _observe_soon(self) -> None:
        chance = random.random()  # noqa: S311  (spreads reconnects, guards nothing)
        self._observe_from = time.monotonic() + observer_pause(self._settings.reconnect_spread, chance)
        self._pacer.wake("observe")

    def _observe_job(self) -> float:
        interval, asked = self._settings.observe_interval, time.monotonic()
        if (early := self._observe_from - asked) > 0:
            return min(early, interval)
        if self._enforcer.state is DatabaseState.UP:
            try:
                reading = self._observer.run_once(runs=self._settings.status_runs)
            except Exception as error:  # noqa: BLE001  (gauges are not worth a life; the event tells)
                self._metrics.observation_failed()
                self._events.observation_failed(self._redacted(error))
                if getattr(error, "state", None) is DatabaseState.UPSTREAM_ENGINE:
                    self._refuse_upstream()
            else:
                self._spare_poll(asked, reading.gauges)
                self._observed(reading)
        # At a steady rate, which keeps the look just ahead of the poll that it spares.
        return max(interval / 2, interval - (time.monotonic() - asked))

    def _spare_poll(self, asked: float, observation: Observation) -> None:
        """A look that found nothing to do is as good as a poll: the next one comes a poll interval after it."""
        settings = self._settings
        if observation.overdue or settings.observe_interval < 2 * settings.poll_interval:
            return  # a sweep is put off once at most before it comes
        if (until := self._enforcer.idle_until(asked, observation.next_due_in)) is not None:
            self._pacer.postpone("sweep", until)

    def _observed(self, reading: Reading) -> None:
        self._metrics.observed(reading.gauges)
        if self._enforcer.state is not DatabaseState.UP:  # it changed meanwhile, and was perhaps told just before
            self._metrics.unobserved()
        self._events.observed(reading.gauges)
        if reading.error is not None:
            self._events.status_page_incomplete(self._redacted(reading.error))
        elif reading.table is not None:
            self._events.status_page_complete()
        self._board.observed(reading.gauges, reading.table)

    def _refuse_upstream(self) -> None:
        self._events.upstream_engine_found(f"{self._settings.schema_name}.flow_runs")
        self._exit = Exit.UPSTREAM_ENGINE
        self._enforcer.stop()
        self._signals.wake()

    # APScheduler.

    def _make_scheduler(self) -> Any:
        scheduler = BackgroundScheduler(
            executors={name: ThreadPoolExecutor(1) for name in _EXECUTORS.values()},
            job_defaults={"misfire_grace_time": None, "coalesce": True, "max_instances": 1},
            timezone=UTC,
        )
        scheduler.add_listener(
            self._on_job_event,
            EVENT_JOB_EXECUTED | EVENT_JOB_ERROR | EVENT_JOB_MISSED | EVENT_JOB_MAX_INSTANCES,
        )
        return scheduler

    def _poke(self, name: str) -> None:
        # A moment long past is due by whatever the wall clock says now or after its next step.
        self._scheduler.modify_job(name, next_run_time=_LONG_AGO)

    def _on_job_event(self, event: JobEvent) -> None:
        name = event.job_id
        if event.code == EVENT_JOB_EXECUTED:
            self._metrics.scheduler("executed")
            self._pacer.ended(name, event.retval)
        elif event.code == EVENT_JOB_ERROR:
            self._metrics.scheduler("error")
            self._events.scheduler_job_failed(name, event.exception)
            self._pacer.ended(name, self._settings.poll_interval)
        elif event.code == EVENT_JOB_MISSED:
            self._metrics.scheduler("missed")
            self._events.scheduler_missed(name)
            self._pacer.ended(name, 0.0)
        else:
            self._metrics.scheduler("max_instances")
            self._pacer.wake(name)
        self._job_ended.set()

    def _make_board(self) -> Board:
        settings = self._settings
        return Board(
            Identity(settings.instance, settings.schema_name, version("curfewd"), settings.status_runs),
            poll_interval=lambda: self._settings.poll_interval,
            observe_interval=settings.observe_interval,
            remedies=REMEDIES.__getitem__,
        )

    def _schedule(self, jobs: Mapping[str, Callable[[], float]]) -> None:
        """Add each of *jobs*, on the executor of its own, to run when `Pacer` pokes it."""
        for name, job in jobs.items():
            self._scheduler.add_job(job, _OnDemand(), id=name, executor=_EXECUTORS[name])
            self._pacer.add(name)

    # What is shown.

    def _readiness(self) -> tuple[bool, str]:
        state, success = self._enforcer.state, self._enforcer.last_success
        if state is None:
            return False, "starting"
        if state is not DatabaseState.UP:
            return False, f"database: {state}"
        if success is None or time.monotonic() - success > _READY_WITHIN + self._settings.poll_interval:
            return False, "no sweep has succeeded lately"
        return True, "ok"

    def _status(self) -> str:
        return f"database: {self._enforcer.state or 'connecting'}"

    def _redacted(self, error: BaseException) -> str:
        try:
            return redact(shown(error), read_database_url(self._settings))
        except config.SettingsError:
            return shown(error)  # the URL cannot be read, so nothing of it can be in the error

    def _described(self) -> dict[str, Any]:
        settings = self._settings
        return {
            "database": describe(read_database_url(settings)),
            "schema": settings.schema_name,
            "instance": settings.instance,
            "poll_interval_s": settings.poll_interval,
            "batch_size": settings.batch_size,
            "retention_s": settings.retention,
            "version": version("curfewd"),
            "python": platform.python_version(),
        }
