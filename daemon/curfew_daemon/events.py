"""Every log event of the daemon: its name, its level, its meaning, and the one place that words it.

An event is a fixed name with values as fields, never a sentence with values inside, so that a search for a name
finds all of it. One line per sweep that marked something; silent sweeps and single runs only at debug. Longer
than other modules, so that the catalogue and the wording stay in one place; what a line looks like is decided
in `loglines.py`.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple
from uuid import UUID

from curfew_daemon.digest import Digest, MarkedDigest
from curfew_daemon.isolation import FIRST_PAUSE
from curfew_daemon.loglines import LIBRARY_MESSAGE, configure, dropped, enabled, set_level
from curfew_daemon.results import DatabaseState, ListenerState, MarkedBatch, Observation, PurgeResult, SweepResult
from curfew_daemon.structured import structlog

__all__ = ["EVENTS", "Event", "Events", "configure", "dropped", "set_level", "table"]


class Event(NamedTuple):
    """A name that operators search for; `level` is the usual one, `meaning` says also what its fields hold."""

    name: str
    level: str
    meaning: str


_ALL: list[Event] = []


def _event(name: str, level: str, meaning: str) -> Event:
    event = Event(name, level, meaning)
    _ALL.append(event)
    return event


STARTED = _event("started", "info", "The loop runs. The fields are the version and the settings in force.")
STOPPING = _event(
    "stopping",
    "info",
    "A stop was asked for (`signal`); the statement in hand is finished or rolled back.",
)
SECOND_SIGNAL = _event("second_signal", "warning", "A second stop signal came (`signal`): exit at once.")
SHUTDOWN_GRACE_EXCEEDED = _event(
    "shutdown_grace_exceeded",
    "warning",
    "Work in hand did not end within `grace_s` seconds; it is abandoned and the database rolls it back.",
)
STOPPED = _event("stopped", "info", "The process ends with `exit_code`.")
CRASHED = _event(
    "crashed",
    "error",
    "An error that nothing expected, in `where`, with its traceback: please report it.",
)
SETTINGS_IGNORED_SERVICE_LINKS = _event(
    "settings_ignored_service_links",
    "info",
    "Environment variables (`names`) that Kubernetes made for a Service were not read as settings.",
)
RELOADED = _event(
    "reloaded",
    "info",
    "Settings were read again on SIGHUP; `changed` names those that differ.",
)
RELOAD_REFUSED = _event(
    "reload_refused",
    "warning",
    "`names` changed but take effect only at a restart; they stay as they were.",
)
RELOAD_FAILED = _event(
    "reload_failed",
    "error",
    "The settings could not be read again (`error`); all stay as they were.",
)
DATABASE_STATE_CHANGED = _event(
    "database_state_changed",
    "warning",
    "The database went from state `old` to `new`; `remedy` says what to do, `error` is the first line"
    " of what it said. At level info when the new state is up.",
)
STARTUP_OPTIONS_DROPPED = _event(
    "startup_options_dropped",
    "warning",
    "A pooler refused startup options (`options`); the timeouts now come from the role.",
)
STARTUP_OPTIONS_TAKEN = _event(
    "startup_options_taken",
    "info",
    "Startup options that a pooler had refused are taken again; the timeouts are those of the settings.",
)
UPSTREAM_ENGINE_FOUND = _event(
    "upstream_engine_found",
    "error",
    "A table of runs that another engine completes (`table`) stands beside the controls; nothing will be marked.",
)
RUNS_TIMED_OUT = _event(
    "runs_timed_out",
    "info",
    "A sweep marked `count` runs, in `batches` within `duration_ms`, at most `lag_max_ms` late; "
    "`run_ids` are the first five. While sweeps follow closely, one line a second for all `sweeps` since the last.",
)
RUN_TIMED_OUT = _event(
    "run_timed_out",
    "debug",
    "One run was marked: `run_id`, `flow_id`, `deadline`, `timed_out_at`.",
)
SWEEP_SILENT = _event(
    "sweep_silent",
    "debug",
    "A sweep woke for `reason` and found nothing to mark; `next_due_in_s` is the time to the next deadline.",
)
SWEEP_FAILED = _event(
    "sweep_failed",
    "error",
    "A sweep ended in `error`, which is no state of the database; it is tried again. Repeated at debug.",
)
RUN_REFUSED = _event(
    "run_refused",
    "error",
    "The database refused to mark `run_id` (`error`), by a trigger or a constraint, say. The others are marked, this"
    " one is tried again in `retry_in_s`. Repeated at debug.",
)
DRAIN_CONNECTION_FAILED = _event(
    "drain_connection_failed",
    "warning",
    "A further connection for a deep backlog ended in `error`; the others mark its part. Repeated at debug.",
)
DRAIN_CONNECTIONS_RECOVERED = _event(
    "drain_connections_recovered", "info", "All further connections for a deep backlog did their part again."
)
OBSERVATION_FAILED = _event(
    "observation_failed",
    "warning",
    "The table could not be counted; its gauges keep what was last seen. Said once until one succeeds.",
)
OBSERVATION_RECOVERED = _event("observation_recovered", "info", "The table could be counted again.")
STATUS_PAGE_INCOMPLETE = _event(
    "status_page_incomplete",
    "info",
    "What the status page shows beyond the gauges could not be read within `CURFEW_OBSERVE_BUDGET` (`error`): it shows"
    " them alone, for a minute at least. Said once until it succeeds.",
)
STATUS_PAGE_COMPLETE = _event("status_page_complete", "info", "What the status page shows could be read again.")
PURGED = _event(
    "purged",
    "info",
    "A round of the purge deleted `runs` with their `keys`, and `orphaned_keys`, in `statements` that took `worked_ms`"
    " of `duration_ms`. At debug where there was nothing to delete, or another daemon was at it (`outcome` aside).",
)
PURGE_FAILED = _event(
    "purge_failed",
    "warning",
    "The database kept a round of the purge from its end (`state`, `error`, `remedy`); it goes on later, and marking is"
    " not touched. Said once until the state changes.",
)
PURGE_RECOVERED = _event("purge_recovered", "info", "A round of the purge ended well again.")
HTTP_LISTENING = _event("http_listening", "info", "The metrics and health pages are served at `url`.")
HTTP_DIED = _event(
    "http_died",
    "error",
    "The HTTP server ended by itself (`error`); marking goes on without its pages.",
)
SCHEDULER_MISSED = _event("scheduler_missed", "warning", "The job `job` did not run at its time.")
SCHEDULER_JOB_FAILED = _event(
    "scheduler_job_failed",
    "error",
    "The job `job` raised an error that it should have handled; it stays scheduled.",
)
LISTENER_STATE_CHANGED = _event(
    "listener_state_changed",
    "warning",
    "The listener went from state `old` to `new`; `remedy` says what to do, `error` is the first line of what it met."
    " Marking is not touched. At level info when the new state is up.",
)
LIBRARY = _event(LIBRARY_MESSAGE, "warning", "Another library's own wording, in `message`; `logger` says whose.")

EVENTS: Mapping[str, str] = {event.name: event.meaning for event in _ALL}


def table() -> str:
    """The events as a Markdown table, for the operator's guide."""
    rows = ["| Event | Level | Meaning |", "|---|---|---|"]
    rows += [f"| `{event.name}` | {event.level} | {event.meaning} |" for event in _ALL]
    return "\n".join(rows) + "\n"


class Events:
    """Takes the facts and words them; the only place that knows the names, the fields and the levels.

    May be called from any thread, and never raises: a line that cannot be written is counted (`dropped`).
    """

    def __init__(self) -> None:
        self._log = structlog.get_logger("curfewd")
        self._digest = Digest()
        self._repeated_failure: str | None = None
        self._repeated_drain_failure: str | None = None
        self._observation_failing = False
        self._page_incomplete = False
        self._purge_failing: str | None = None

    def started(self, **settings: Any) -> None:
        """The loop runs with these settings; the caller leaves secrets out."""
        self._say(STARTED, **settings)

    def stopping(self, signal: str) -> None:
        """A stop was asked for."""
        self._say(STOPPING, signal=signal)

    def second_signal(self, signal: str) -> None:
        """A stop was asked for again. Safe in a signal's handler."""
        self._say(SECOND_SIGNAL, signal=signal)

    def shutdown_grace_exceeded(self, grace: float) -> None:
        """Work in hand was abandoned after `grace` seconds."""
        self._say(SHUTDOWN_GRACE_EXCEEDED, grace_s=grace)

    def stopped(self, exit_code: int) -> None:
        """The process is about to end."""
        self._say_marked(self._digest.flush())
        self._say(STOPPED, exit_code=exit_code)

    def crashed(self, error: BaseException, where: str) -> None:
        """Something ended in an error that nobody expected."""
        self._say(CRASHED, where=where, error=first_line(error), exc_info=error)

    def settings_ignored_service_links(self, names: Iterable[str]) -> None:
        """Kubernetes' own variables were passed over."""
        self._say(SETTINGS_IGNORED_SERVICE_LINKS, names=sorted(names))

    def reloaded(self, changed: Iterable[str]) -> None:
        """Settings were read again."""
        self._say(RELOADED, changed=sorted(changed))

    def reload_refused(self, names: Iterable[str]) -> None:
        """Some settings changed that need a restart."""
        self._say(RELOAD_REFUSED, names=sorted(names))

    def reload_failed(self, error: BaseException | str) -> None:
        """The settings could not be read again."""
        self._say(RELOAD_FAILED, error=first_line(error))

    def database(
        self,
        old: DatabaseState | None,
        new: DatabaseState,
        remedy: str | None = None,
        error: BaseException | str | None = None,
    ) -> None:
        """The database's state changed; call it for changes only. Anything but up is a warning."""
        fields: dict[str, Any] = {"old": old, "new": new}
        if remedy:
            fields["remedy"] = remedy
        if error is not None:
            fields["error"] = first_line(error)
        self._say(DATABASE_STATE_CHANGED, at_level="info" if new is DatabaseState.UP else None, **fields)

    def listener(
        self, old: ListenerState | None, new: ListenerState, remedy: str | None, error: BaseException | str | None
    ) -> None:
        """The listener's state changed; call it for changes only. Anything but up is a warning."""
        fields: dict[str, Any] = {"old": old, "new": new}
        if remedy:
            fields["remedy"] = remedy
        if error is not None:
            fields["error"] = first_line(error)
        self._say(LISTENER_STATE_CHANGED, at_level="info" if new is ListenerState.UP else None, **fields)

    def startup_options_dropped(self, options: Iterable[str]) -> None:
        """A pooler refused startup options; none: they are taken again."""
        if refused := sorted(options):
            self._say(STARTUP_OPTIONS_DROPPED, options=refused)
        else:
            self._say(STARTUP_OPTIONS_TAKEN)

    def upstream_engine_found(self, table: str) -> None:
        """Another engine's table of runs was found."""
        self._say(UPSTREAM_ENGINE_FOUND, table=table)

    def marked(self, batch: MarkedBatch) -> None:
        """A batch was marked: one line per run at debug, nothing above. Costs nothing when debug is off."""
        if not enabled(RUN_TIMED_OUT.level):
            return
        for run in batch.runs:
            self._say(
                RUN_TIMED_OUT,
                run_id=run.run_id,
                flow_id=run.flow_id,
                deadline=run.deadline,
                timed_out_at=run.timed_out_at,
            )

    def swept(self, result: SweepResult) -> None:
        """A sweep ended well: a line if it marked something, at most one a second; one at debug if not."""
        self._repeated_failure = None
        self._say_marked(self._digest.swept(result))
        if not result.marked and enabled(SWEEP_SILENT.level):
            self._say(
                SWEEP_SILENT,
                reason=result.reason,
                duration_ms=_milliseconds(result.duration),
                next_due_in_s=result.next_due_in,
                overdue_remains=result.overdue_remains,
            )

    def sweep_failed(self, error: BaseException) -> None:
        """A sweep ended in an error; the same one again, with no good sweep between, only at debug."""
        self._say_marked(self._digest.flush())
        line = first_line(error)
        if line == self._repeated_failure:
            self._say(SWEEP_FAILED, at_level="debug", error=line)
            return
        self._repeated_failure = line
        self._say(SWEEP_FAILED, error=line, exc_info=error)

    def run_refused(self, run_id: UUID, retry_in: float, error: BaseException) -> None:
        """The database refused to mark a run; told at its usual level the first time only."""
        level = None if retry_in <= FIRST_PAUSE else "debug"
        self._say(RUN_REFUSED, at_level=level, run_id=str(run_id), error=first_line(error), retry_in_s=retry_in)

    def _say_marked(self, digest: MarkedDigest | None) -> None:
        if digest is not None:
            self._say(
                RUNS_TIMED_OUT,
                count=digest.count,
                lag_max_ms=_milliseconds(digest.lag_max),
                duration_ms=_milliseconds(digest.duration),
                sweeps=digest.sweeps,
                batches=digest.batches,
                run_ids=digest.run_ids,
                reason=digest.reason,
            )

    def drain_connection_failed(self, error: BaseException | str) -> None:
        """A further connection of a drain gave up; for the same reason again, only at debug."""
        line = first_line(error)
        repeated, self._repeated_drain_failure = line == self._repeated_drain_failure, line
        self._say(DRAIN_CONNECTION_FAILED, at_level="debug" if repeated else None, error=line)

    def drain_connections_recovered(self) -> None:
        """No further connection of a drain gave up: said once after one did."""
        if self._repeated_drain_failure is not None:
            self._repeated_drain_failure = None
            self._say(DRAIN_CONNECTIONS_RECOVERED)

    def observed(self, _observation: Observation) -> None:
        """An observation succeeded: said once after one that failed."""
        if self._observation_failing:
            self._observation_failing = False
            self._say(OBSERVATION_RECOVERED)

    def status_page_incomplete(self, error: BaseException | str) -> None:
        """The queries of the status page failed: said once until they succeed."""
        if not self._page_incomplete:
            self._page_incomplete = True
            self._say(STATUS_PAGE_INCOMPLETE, error=first_line(error))

    def status_page_complete(self) -> None:
        """The queries of the status page succeeded: said once after they failed."""
        if self._page_incomplete:
            self._page_incomplete = False
            self._say(STATUS_PAGE_COMPLETE)

    def observation_failed(self, error: BaseException | str) -> None:
        """An observation failed: said once until one succeeds."""
        if not self._observation_failing:
            self._observation_failing = True
            self._say(OBSERVATION_FAILED, error=first_line(error))

    def purged(self, result: PurgeResult) -> None:
        """A round of the purge ended without an error."""
        if self._purge_failing is not None:
            self._purge_failing = None
            self._say(PURGE_RECOVERED)
        deleted = result.deleted
        self._say(
            PURGED,
            at_level=None if deleted.runs or deleted.orphaned_keys else "debug",
            outcome=result.outcome,
            runs=deleted.runs,
            keys=deleted.keys,
            orphaned_keys=deleted.orphaned_keys,
            statements=result.statements,
            worked_ms=_milliseconds(result.worked),
            duration_ms=_milliseconds(result.duration),
        )

    def purge_failed(self, state: DatabaseState, error: BaseException | str, remedy: str) -> None:
        """A round of the purge met an error: said once until the state changes, or a round ends well."""
        if self._purge_failing == state:
            return
        self._purge_failing = state
        self._say(PURGE_FAILED, state=state, error=first_line(error), remedy=remedy)

    def http_listening(self, url: str) -> None:
        """The pages are served."""
        self._say(HTTP_LISTENING, url=url)

    def http_died(self, error: BaseException) -> None:
        """The HTTP server ended by itself."""
        self._say(HTTP_DIED, error=first_line(error))

    def scheduler_missed(self, job: str) -> None:
        """A job did not run at its time."""
        self._say(SCHEDULER_MISSED, job=job)

    def scheduler_job_failed(self, job: str, error: BaseException) -> None:
        """A job raised."""
        self._say(SCHEDULER_JOB_FAILED, job=job, error=first_line(error), exc_info=error)

    def _say(self, event: Event, *, at_level: str | None = None, **fields: object) -> None:
        getattr(self._log, at_level or event.level)(event.name, **fields)


def first_line(error: BaseException | str) -> str:
    """The first line of what went wrong; an exception's is preceded by its type. What follows is often SQL."""
    text = (str(error).strip().splitlines() or [""])[0]
    return text if isinstance(error, str) else f"{type(error).__name__}: {text}"


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)
