"""Every metric of the daemon, in one place: names, meaning, labels, and the facts that feed them.

Names carry the prefix `curfew_` and base units. No label is unbounded, and every series exists from the
start, so that a zero can be told from an absence. The gauges of the whole table (overdue, armed, next
deadline) are exported by every daemon alike: aggregate them with `max without (instance)`, the counters with
`sum`. Longer than other modules, so that all metrics stand in one place.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from platform import python_version
from typing import NamedTuple

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

from curfew_daemon.histogram import BatchHistogram
from curfew_daemon.results import (
    DatabaseState,
    HintOutcome,
    ListenerState,
    MarkedBatch,
    Observation,
    PurgedSlice,
    PurgeResult,
    SweepResult,
)

WAKE_REASONS = ("start", "deadline", "poll", "more", "blocked", "retry", "hint", "reload")
SWEEP_OUTCOMES = ("ok", "error")
PURGE_OUTCOMES = ("ok", "aside", "error")
PURGED_KINDS = ("run", "key", "orphaned_key")
SCHEDULER_EVENTS = ("executed", "error", "missed", "max_instances")

# From one millisecond, the lag of a sweep that slept until the deadline, to an hour, a daemon that was away.
LAG_BUCKETS = (
    0.001, 0.002, 0.003, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600,
)  # fmt: skip
_DURATION_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Described(NamedTuple):
    """One metric as the documentation shows it; `labels` maps a label to all the values that it takes."""

    name: str
    kind: str
    help: str
    labels: Mapping[str, Sequence[str]] = {}


METRICS: tuple[Described, ...] = (
    Described("curfew_runs_timed_out_total", "counter", "Runs that this daemon marked as timed out."),
    Described("curfew_marks_refused_total", "counter", "Attempts to mark a run that the database refused, one by one."),
    Described(
        "curfew_enforcement_lag_seconds",
        "histogram",
        "From a run's deadline to the acknowledged commit of its mark.",
    ),
    Described(
        "curfew_sweeps_total",
        "counter",
        "Sweeps by outcome; a sweep ends when nothing is due.",
        {"outcome": SWEEP_OUTCOMES},
    ),
    Described("curfew_sweep_duration_seconds", "histogram", "Duration of a good sweep with its drain."),
    Described("curfew_wakeups_total", "counter", "Wake-ups of the loop by reason.", {"reason": WAKE_REASONS}),
    Described("curfew_overdue_runs", "gauge", "Runs past their deadline, not yet marked."),
    Described("curfew_overdue_runs_capped", "gauge", "1 if the count of overdue runs stopped at its bound."),
    Described(
        "curfew_oldest_overdue_age_seconds",
        "gauge",
        "Age of the earliest overdue deadline by the database's clock, 0 if none is overdue.",
    ),
    Described("curfew_armed_runs", "gauge", "Runs with a deadline still to come."),
    Described("curfew_armed_runs_capped", "gauge", "1 if the count of armed runs stopped at its bound."),
    Described(
        "curfew_next_deadline_timestamp_seconds",
        "gauge",
        "Unix time of the earliest deadline still to come, 0 if none is armed.",
    ),
    Described(
        "curfew_observation_up",
        "gauge",
        "1 while the gauges of the table are fresh; 0 if the last observation failed or the database is not up.",
    ),
    Described("curfew_observation_duration_seconds", "gauge", "Duration of the last observation."),
    Described("curfew_observation_failures_total", "counter", "Observations that failed or overran their budget."),
    Described("curfew_database_up", "gauge", "1 while the database lets this daemon enforce, else 0."),
    Described(
        "curfew_database_state",
        "gauge",
        "1 for the state that holds, 0 for the others; all 0 before the first contact.",
        {"state": tuple(DatabaseState)},
    ),
    Described(
        "curfew_last_successful_sweep_timestamp_seconds",
        "gauge",
        "Unix time of the last success: a sweep that ended well, or a batch of one that drains; 0 before the first.",
    ),
    Described(
        "curfew_loop_heartbeat_timestamp_seconds",
        "gauge",
        "Unix time of the loop's last beat; it beats with the database down, too.",
    ),
    Described(
        "curfew_full_looks_total",
        "counter",
        "Searches for overdue runs over the whole index; the others begin at a low-water mark.",
    ),
    Described(
        "curfew_full_look_duration_seconds",
        "gauge",
        "Duration of the last search over the whole index, on the server.",
    ),
    Described(
        "curfew_full_look_period_seconds", "gauge", "Time between two searches over the whole index; more if they cost."
    ),
    Described(
        "curfew_standby_slack_seconds",
        "gauge",
        "How long past a deadline this daemon sleeps, for a faster one to meet it; 0 for an active daemon.",
    ),
    Described(
        "curfew_scheduler_events_total",
        "counter",
        "Events of the job scheduler; `missed` and `max_instances` are jobs that did not run on time.",
        {"event": SCHEDULER_EVENTS},
    ),
    Described(
        "curfew_retention_seconds", "gauge", "How long runs are kept after their end, 0 for ever (`CURFEW_RETENTION`)."
    ),
    Described(
        "curfew_purged_rows_total",
        "counter",
        "Rows that this daemon deleted: ended runs, their keys, and keys that pointed to no run.",
        {"kind": PURGED_KINDS},
    ),
    Described(
        "curfew_purge_rounds_total",
        "counter",
        "Rounds of the purge by outcome; `aside`: left to another daemon that was at it, `error`: interrupted.",
        {"outcome": PURGE_OUTCOMES},
    ),
    Described("curfew_purge_duration_seconds", "gauge", "Duration of the last whole round, rests included."),
    Described(
        "curfew_last_successful_purge_timestamp_seconds",
        "gauge",
        "Unix time at which the last whole round ended, 0 before the first.",
    ),
    Described(
        "curfew_listener_state",
        "gauge",
        "1 for the state of the listener that holds, 0 for the others; all 0 before it has connected or failed.",
        {"state": tuple(ListenerState)},
    ),
    Described(
        "curfew_hints_total",
        "counter",
        "Notifications heard, by what came of them; `known`: the sweep that was planned comes in time.",
        {"outcome": tuple(HintOutcome)},
    ),
    Described("curfew_build_info", "info", "Always 1; the versions are its labels.", {"version": (), "python": ()}),
)
_DESCRIBED = {metric.name: metric for metric in METRICS}


def table() -> str:
    """The catalogue as a Markdown table, for the operator's guide."""
    rows = ["| Metric | Type | Labels | Meaning |", "|---|---|---|---|"]
    for metric in METRICS:
        labels = "; ".join(
            f"`{label}`" + (f": {', '.join(values)}" if values else "") for label, values in metric.labels.items()
        )
        rows.append(f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help} |")
    return "\n".join(rows) + "\n"


class Metrics:
    """Takes the facts and keeps the series. No method touches the database; all are safe in any thread.

    An instance has its own registry unless one is given, so that tests and embedders share no state. Creating
    one switches off the client library's `_created` series, which double every counter, for the process.
    """

    def __init__(
        self,
        registry: CollectorRegistry | None = None,
        *,
        version: str = "unknown",
        clock: Callable[[], float] = time.time,
    ) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the library has no annotation here
        self.registry = CollectorRegistry() if registry is None else registry
        self._clock = clock
        self._add_enforcement()
        self._add_observation()
        self._add_health()
        self._add_purge_and_hints()
        self._build = Info("curfew_build", _DESCRIBED["curfew_build_info"].help, registry=self.registry)
        self._build.info({"version": version, "python": python_version()})
        for collector in (self._lag, ProcessCollector(registry=None), PlatformCollector(registry=None)):
            self.registry.register(collector)
        GCCollector(registry=self.registry)

    def marked(self, batch: MarkedBatch) -> None:
        """Counts the runs of one batch and their lags; cheap enough for every batch of a drain."""
        self._runs_timed_out.inc(len(batch.runs))
        self._lag.observe_many(batch.lags)

    def refused(self) -> None:
        """Counts a run that the database refused to mark."""
        self._marks_refused.inc()

    def swept(self, result: SweepResult) -> None:
        """Notes a sweep that ended well. Its marks were counted batch by batch, by `marked`."""
        self._sweeps.labels("ok").inc()
        self._sweep_duration.observe(result.duration)
        self._last_successful_sweep.set(self._clock())
        self._set_next_deadline(result.next_due_in)
        self._slack.set(result.slack)
        self._full_look_period.set(result.full_look_period)
        if result.full_look is not None:
            self._full_looks.inc()
            self._full_look_duration.set(result.full_look)

    def progressed(self) -> None:
        """Notes that the sweep in hand has marked a batch."""
        self._last_successful_sweep.set(self._clock())

    def sweep_failed(self) -> None:
        """Notes a sweep that ended in an error."""
        self._sweeps.labels("error").inc()

    def observed(self, observation: Observation) -> None:
        """Sets the gauges of the table. An armed count that was not taken leaves the former one standing."""
        self._overdue.set(observation.overdue)
        self._overdue_capped.set(observation.overdue_capped)
        self._oldest_overdue_age.set(observation.oldest_overdue_age or 0.0)
        if observation.armed is not None:
            self._armed.set(observation.armed)
            self._armed_capped.set(observation.armed_capped)
        self._set_next_deadline(observation.next_due_in)
        self._observation_duration.set(observation.duration)
        self._observation_up.set(1)

    def observation_failed(self) -> None:
        """Notes an observation that failed; the gauges keep what was last seen."""
        self._observation_failures.inc()
        self.unobserved()

    def unobserved(self) -> None:
        """Notes that the gauges of the table are not fresh any more."""
        self._observation_up.set(0)

    def retention(self, seconds: float | None) -> None:
        """Notes how long ended runs are kept from now on."""
        self._retention.set(seconds or 0.0)

    def purged_slice(self, deleted: PurgedSlice) -> None:
        """Counts what one statement of the purge deleted."""
        for kind, count in zip(PURGED_KINDS, (deleted.runs, deleted.keys, deleted.orphaned_keys), strict=True):
            self._purged_rows.labels(kind).inc(count)

    def purged(self, result: PurgeResult) -> None:
        """Notes a round that went through both tables, or was left to another daemon."""
        if result.outcome == "aside":
            self._purge_rounds.labels("aside").inc()
        elif result.outcome == "done":
            self._purge_rounds.labels("ok").inc()
            self._purge_duration.set(result.duration)
            self._last_successful_purge.set(self._clock())

    def purge_failed(self) -> None:
        """Notes a round that an error interrupted."""
        self._purge_rounds.labels("error").inc()

    def database(self, state: DatabaseState) -> None:
        """Notes the state that holds from now on."""
        self._database_up.set(state is DatabaseState.UP)
        if state is not DatabaseState.UP:
            self.unobserved()  # as long as it lasts
        for each in DatabaseState:
            self._database_state.labels(each).set(each is state)

    def beat(self) -> None:
        """Notes that the loop is alive."""
        self._heartbeat.set(self._clock())

    def woke(self, reason: str) -> None:
        """Counts a wake-up. A reason outside `WAKE_REASONS` is a `ValueError`: the label stays bounded."""
        if reason not in WAKE_REASONS:
            raise ValueError(f"not a reason to wake: {reason!r}; known: {', '.join(WAKE_REASONS)}")
        self._wakeups.labels(reason).inc()

    def listener(self, state: ListenerState) -> None:
        """Notes the listener's state that holds from now on."""
        for each in ListenerState:
            self._listener_state.labels(each).set(each is state)

    def hints_heard(self, outcome: HintOutcome, count: int) -> None:
        """Counts notifications."""
        self._hints.labels(outcome).inc(count)

    def scheduler(self, event: str) -> None:
        """Counts an event of the scheduler. One outside `SCHEDULER_EVENTS` is a `ValueError`."""
        if event not in SCHEDULER_EVENTS:
            raise ValueError(f"not a scheduler event: {event!r}; known: {', '.join(SCHEDULER_EVENTS)}")
        self._scheduler_events.labels(event).inc()

    def render(self, openmetrics: bool) -> bytes:
        """The exposition of all series: OpenMetrics 1.0.0, or Prometheus text 0.0.4."""
        if openmetrics:
            return bytes(generate_openmetrics(self.registry))  # type: ignore[no-untyped-call]  # nor here
        return generate_latest(self.registry)

    def _set_next_deadline(self, due_in: float | None) -> None:
        self._next_deadline.set(0.0 if due_in is None else self._clock() + due_in)

    def _add_enforcement(self) -> None:
        self._runs_timed_out = self._counter("curfew_runs_timed_out_total")
        self._marks_refused = self._counter("curfew_marks_refused_total")
        self._lag = BatchHistogram(*_name_and_help("curfew_enforcement_lag_seconds"), LAG_BUCKETS)
        self._sweeps = self._counter("curfew_sweeps_total")
        self._sweep_duration = Histogram(
            *_name_and_help("curfew_sweep_duration_seconds"),
            buckets=_DURATION_BUCKETS,
            registry=self.registry,
        )
        self._wakeups = self._counter("curfew_wakeups_total")

    def _add_observation(self) -> None:
        self._overdue = self._gauge("curfew_overdue_runs")
        self._overdue_capped = self._gauge("curfew_overdue_runs_capped")
        self._oldest_overdue_age = self._gauge("curfew_oldest_overdue_age_seconds")
        self._armed = self._gauge("curfew_armed_runs")
        self._armed_capped = self._gauge("curfew_armed_runs_capped")
        self._next_deadline = self._gauge("curfew_next_deadline_timestamp_seconds")
        self._observation_up = self._gauge("curfew_observation_up")
        self._observation_duration = self._gauge("curfew_observation_duration_seconds")
        self._observation_failures = self._counter("curfew_observation_failures_total")

    def _add_health(self) -> None:
        self._database_up = self._gauge("curfew_database_up")
        self._database_state = self._gauge("curfew_database_state")
        self._last_successful_sweep = self._gauge("curfew_last_successful_sweep_timestamp_seconds")
        self._heartbeat = self._gauge("curfew_loop_heartbeat_timestamp_seconds")
        self._full_looks = self._counter("curfew_full_looks_total")
        self._full_look_duration = self._gauge("curfew_full_look_duration_seconds")
        self._full_look_period = self._gauge("curfew_full_look_period_seconds")
        self._slack = self._gauge("curfew_standby_slack_seconds")
        self._scheduler_events = self._counter("curfew_scheduler_events_total")

    def _add_purge_and_hints(self) -> None:
        self._retention = self._gauge("curfew_retention_seconds")
        self._purged_rows = self._counter("curfew_purged_rows_total")
        self._purge_rounds = self._counter("curfew_purge_rounds_total")
        self._purge_duration = self._gauge("curfew_purge_duration_seconds")
        self._last_successful_purge = self._gauge("curfew_last_successful_purge_timestamp_seconds")
        self._listener_state = self._gauge("curfew_listener_state")
        self._hints = self._counter("curfew_hints_total")

    def _counter(self, name: str) -> Counter:
        metric = _DESCRIBED[name]
        counter = Counter(name, metric.help, tuple(metric.labels), registry=self.registry)
        _create_series(counter, metric)
        return counter

    def _gauge(self, name: str) -> Gauge:
        metric = _DESCRIBED[name]
        gauge = Gauge(name, metric.help, tuple(metric.labels), registry=self.registry)
        _create_series(gauge, metric)
        return gauge


def _name_and_help(name: str) -> tuple[str, str]:
    return name, _DESCRIBED[name].help


def _create_series(metric: Counter | Gauge, described: Described) -> None:
    for values in described.labels.values():
        for value in values:
            metric.labels(value)
