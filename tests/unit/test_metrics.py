"""The metrics: one catalogue, every series from the start, and facts that move the right ones."""

import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal
from uuid import UUID

import pytest
from prometheus_client import CollectorRegistry, Histogram, Metric
from prometheus_client import parser as text_parser
from prometheus_client.openmetrics import parser as openmetrics_parser

from curfew_daemon import metrics as module
from curfew_daemon.histogram import BatchHistogram
from curfew_daemon.metrics import LAG_BUCKETS, METRICS, WAKE_REASONS, Metrics
from curfew_daemon.results import (
    DatabaseState,
    HintOutcome,
    ListenerState,
    MarkedBatch,
    MarkedRun,
    Observation,
    PurgedSlice,
    PurgeResult,
    SweepResult,
)

NOW = datetime(2030, 5, 1, 12, 0, 0, tzinfo=UTC)
GUIDE = Path(module.__file__).parents[1] / "README.md"


def parse_openmetrics(text: str) -> list[Metric]:
    return list(openmetrics_parser.text_string_to_metric_families(text))  # type: ignore[no-untyped-call]


def parse_text(text: str) -> list[Metric]:
    return list(text_parser.text_string_to_metric_families(text))


def run(lag: float) -> MarkedRun:
    return MarkedRun(UUID(int=1), UUID(int=2), NOW - timedelta(seconds=lag), NOW)


def batch(*lags: float, round_trip: float = 0.0) -> MarkedBatch:
    return MarkedBatch(tuple(run(lag) for lag in lags), round_trip)


def sweep(*, marked: int = 0, next_due_in: float | None = None) -> SweepResult:
    return SweepResult(
        reason="poll",
        marked=marked,
        batches=1,
        statements=2,
        duration=0.02,
        run_ids=(),
        lag_max=None,
        next_due_in=next_due_in,
        overdue_remains=False,
    )


def observation(
    *, overdue: int = 0, oldest: float | None = None, armed: int | None = 0, next_due_in: float | None = None
) -> Observation:
    return Observation(overdue, overdue > 10_000, oldest, armed, (armed or 0) > 10_000, next_due_in, 0.004)


def value(metrics: Metrics, name: str, **labels: str) -> float:
    found = metrics.registry.get_sample_value(name, labels)
    assert found is not None, f"no series {name} {labels}"
    return found


def series(metrics: Metrics) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
    return {
        (sample.name, tuple(sorted(sample.labels.items())))
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name.startswith("curfew_")
    }


def test_lag_includes_the_round_trip() -> None:
    """A lag ends when the commit was acknowledged: stamp minus deadline plus the round trip."""
    assert batch(0.0, 2.0, round_trip=0.25).lags == pytest.approx((2.25, 0.25))


def test_deadline_of_another_writer_has_no_lag() -> None:
    """A deadline before the year 2000 is left out of the lags; the run is counted all the same."""
    first_of_all = datetime.min.replace(tzinfo=UTC)
    odd = MarkedRun(UUID(int=3), UUID(int=4), first_of_all, NOW)
    metrics = Metrics()
    metrics.marked(MarkedBatch((odd, run(1.0)), 0.0))

    assert MarkedBatch((odd, run(1.0)), 0.0).lags == (1.0,)
    assert value(metrics, "curfew_runs_timed_out_total") == 2
    assert value(metrics, "curfew_enforcement_lag_seconds_count") == 1


def test_catalogue_is_what_is_exported() -> None:
    """Names, types and help texts of the catalogue are those of the exposition, none more and none less."""
    families = {
        family.name: (family.type, family.documentation)
        for family in parse_openmetrics(Metrics().render(openmetrics=True).decode())
        if family.name.startswith("curfew_")
    }
    described = {
        metric.name.removesuffix("_total").removesuffix("_info"): (metric.kind, metric.help) for metric in METRICS
    }

    assert families == described


def test_every_series_is_there_from_the_start() -> None:
    """No fact creates a series: all label values exist, at zero, before the first one."""
    metrics = Metrics(clock=lambda: 5.0)
    before = series(metrics)
    for reason in WAKE_REASONS:
        metrics.woke(reason)
        assert value(metrics, "curfew_wakeups_total", reason=reason) == 1
    for event in module.SCHEDULER_EVENTS:
        metrics.scheduler(event)
    for state in DatabaseState:
        metrics.database(state)
    metrics.marked(batch(0.5))
    metrics.swept(sweep())
    metrics.sweep_failed()
    metrics.observed(observation())
    metrics.observation_failed()
    metrics.beat()
    metrics.retention(60.0)
    metrics.purged_slice(PurgedSlice(1, 1, 1))
    metrics.purged(purge_round())
    metrics.purge_failed()
    metrics.listener(ListenerState.UP)
    metrics.hints_heard(HintOutcome.KNOWN, 2)

    assert series(metrics) == before


def purge_round(outcome: Literal["done", "aside", "stopped"] = "done") -> PurgeResult:
    return PurgeResult(outcome, PurgedSlice(3, 2, 1), statements=4, worked=0.1, duration=0.4)


def test_what_a_purge_deleted_is_counted_by_kind_and_its_rounds_by_outcome() -> None:
    """Rows count with their statement, also where the round fails later; only a whole round is a success."""
    metrics = Metrics(clock=lambda: 77.0)
    metrics.retention(3600.0)
    metrics.purged_slice(PurgedSlice(3, 2, 0))
    metrics.purged_slice(PurgedSlice(0, 0, 1))
    metrics.purge_failed()
    metrics.purged(purge_round("aside"))
    metrics.purged(purge_round("stopped"))
    assert [value(metrics, "curfew_purged_rows_total", kind=kind) for kind in module.PURGED_KINDS] == [3, 2, 1]
    assert value(metrics, "curfew_last_successful_purge_timestamp_seconds") == 0
    metrics.purged(purge_round())
    assert [value(metrics, "curfew_purge_rounds_total", outcome=each) for each in module.PURGE_OUTCOMES] == [1, 1, 1]
    assert value(metrics, "curfew_last_successful_purge_timestamp_seconds") == 77
    assert value(metrics, "curfew_purge_duration_seconds") == 0.4
    assert value(metrics, "curfew_retention_seconds") == 3600
    metrics.retention(None)
    assert value(metrics, "curfew_retention_seconds") == 0


def test_one_state_of_the_listener_holds_and_hints_are_counted_by_what_came_of_them() -> None:
    """None before the first attempt, then exactly one; a batch of notifications is one call."""
    metrics = Metrics()
    states = {state: value(metrics, "curfew_listener_state", state=state) for state in ListenerState}
    assert set(states.values()) == {0}
    for now in ListenerState:
        metrics.listener(now)
        states = {state: value(metrics, "curfew_listener_state", state=state) for state in ListenerState}
        assert states == {state: float(state is now) for state in ListenerState}
    metrics.hints_heard(HintOutcome.SOONER, 1)
    metrics.hints_heard(HintOutcome.KNOWN, 7)
    counts = [value(metrics, "curfew_hints_total", outcome=outcome) for outcome in HintOutcome]
    assert counts == [1, 7, 0]


def test_labels_take_only_known_values() -> None:
    """The exported label values are exactly those of the catalogue; an unknown value is refused by name."""
    exported: dict[str, set[str]] = {}
    for _, labels in series(Metrics()):
        for label, label_value in labels:
            exported.setdefault(label, set()).add(label_value)

    assert exported["reason"] == set(WAKE_REASONS)
    assert exported["state"] == {*DatabaseState, *ListenerState}
    assert exported["outcome"] == {*module.SWEEP_OUTCOMES, *module.PURGE_OUTCOMES, *HintOutcome}
    assert exported.keys() == {"reason", "state", "outcome", "event", "kind", "le", "version", "python"}
    with pytest.raises(ValueError, match="'run-17'"):
        Metrics().woke("run-17")
    with pytest.raises(ValueError, match="'run-17'"):
        Metrics().scheduler("run-17")


def test_lag_histogram_equals_the_client_librarys() -> None:
    """Every bucket, the count and the sum agree with the reference histogram, bounds included."""
    lags = [0.0, 0.0005, *LAG_BUCKETS, *(bound * 1.01 for bound in LAG_BUCKETS), 1e9]
    registry = CollectorRegistry()
    reference = Histogram("x_seconds", "x", buckets=LAG_BUCKETS, registry=registry)
    for lag in lags:
        reference.observe(lag)
    ours = BatchHistogram("x_seconds", "x", LAG_BUCKETS)
    ours.observe_many(lags[:7])
    ours.observe_many(())
    ours.observe_many(lags[7:])

    expected = {
        (sample.name, sample.labels.get("le")): pytest.approx(sample.value)
        for family in registry.collect()
        for sample in family.samples
        if not sample.name.endswith("_created")
    }
    got = {
        (sample.name, sample.labels.get("le")): sample.value for family in ours.collect() for sample in family.samples
    }

    assert got == expected


def test_counting_a_batch_is_cheaper_than_observing_run_by_run() -> None:
    """Counting a batch of 500 with its lags costs less than the library's observe() for each of them."""
    metrics = Metrics()
    full = batch(*(i * 7.3 for i in range(500)))
    library = Histogram("lag_seconds", "", buckets=LAG_BUCKETS, registry=CollectorRegistry())

    def one_by_one() -> None:
        for lag in full.lags:
            library.observe(lag)

    def best_of(action: Callable[[], None]) -> float:
        durations = []
        for _ in range(50):
            start = time.perf_counter()
            action()
            durations.append(time.perf_counter() - start)
        return min(durations)

    tracing = sys.gettrace()
    sys.settrace(None)  # a coverage run would measure itself
    try:
        ours, theirs = best_of(lambda: metrics.marked(full)), best_of(one_by_one)
    finally:
        sys.settrace(tracing)
    assert ours < theirs
    assert value(metrics, "curfew_runs_timed_out_total") == 50 * 500


def test_sweep_moves_its_series() -> None:
    """A sweep counts by outcome; a good one notes its end, its duration and the next deadline."""
    metrics = Metrics(clock=lambda: 1000.0)
    metrics.sweep_failed()
    assert value(metrics, "curfew_last_successful_sweep_timestamp_seconds") == 0

    metrics.swept(sweep(next_due_in=2.5))
    assert value(metrics, "curfew_sweeps_total", outcome="ok") == 1
    assert value(metrics, "curfew_sweeps_total", outcome="error") == 1
    assert value(metrics, "curfew_sweep_duration_seconds_count") == 1
    assert value(metrics, "curfew_last_successful_sweep_timestamp_seconds") == 1000
    assert value(metrics, "curfew_next_deadline_timestamp_seconds") == 1002.5
    assert value(metrics, "curfew_runs_timed_out_total") == 0

    metrics.swept(sweep(next_due_in=None))
    assert value(metrics, "curfew_next_deadline_timestamp_seconds") == 0


def test_observation_sets_the_gauges_of_the_table() -> None:
    """Counts, caps and ages are those of the observation; without an overdue run the age is 0."""
    metrics = Metrics(clock=lambda: 1000.0)
    metrics.observed(observation(overdue=20_000, oldest=7.5, armed=3, next_due_in=1.0))
    assert value(metrics, "curfew_overdue_runs") == 20_000
    assert value(metrics, "curfew_overdue_runs_capped") == 1
    assert value(metrics, "curfew_oldest_overdue_age_seconds") == 7.5
    assert value(metrics, "curfew_armed_runs") == 3
    assert value(metrics, "curfew_armed_runs_capped") == 0
    assert value(metrics, "curfew_next_deadline_timestamp_seconds") == 1001
    assert value(metrics, "curfew_observation_duration_seconds") == 0.004

    metrics.observed(observation(armed=None))
    assert value(metrics, "curfew_overdue_runs_capped") == 0
    assert value(metrics, "curfew_oldest_overdue_age_seconds") == 0
    assert value(metrics, "curfew_armed_runs") == 3


def test_failed_observation_leaves_the_gauges() -> None:
    """A failed observation is counted and changes no gauge."""
    metrics = Metrics()
    metrics.observed(observation(overdue=4, oldest=1.0))
    metrics.observation_failed()

    assert value(metrics, "curfew_observation_failures_total") == 1
    assert value(metrics, "curfew_overdue_runs") == 4


def test_the_gauges_of_the_table_say_whether_they_are_fresh() -> None:
    """Not before the first observation, after one that failed, or without the database; a new one makes them so."""
    metrics = Metrics()
    metrics.database(DatabaseState.UP)
    assert value(metrics, "curfew_observation_up") == 0
    for stale in (metrics.observation_failed, lambda: metrics.database(DatabaseState.UNREACHABLE)):
        metrics.observed(observation())
        metrics.database(DatabaseState.UP)
        assert value(metrics, "curfew_observation_up") == 1
        stale()
        assert value(metrics, "curfew_observation_up") == 0


def test_one_database_state_holds() -> None:
    """No state holds before the first contact, then exactly the last one; up is 1 only for `up`."""
    metrics = Metrics()

    def held() -> list[str]:
        return [s for s in DatabaseState if value(metrics, "curfew_database_state", state=s)]

    assert held() == []
    for state in DatabaseState:
        metrics.database(state)
        assert held() == [state]
        assert value(metrics, "curfew_database_up") == (state == "up")


def test_beat_is_wall_clock_time() -> None:
    """The heartbeat is exported as a Unix time, which a scraper compares with its own clock."""
    metrics = Metrics(clock=lambda: 1234.5)
    metrics.beat()

    assert value(metrics, "curfew_loop_heartbeat_timestamp_seconds") == 1234.5


def test_both_expositions_parse_and_carry_the_process() -> None:
    """Text and OpenMetrics parse strictly, with process, platform, collector and build series."""
    metrics = Metrics(version="1.2.3")
    text = metrics.render(openmetrics=False).decode()
    openmetrics = metrics.render(openmetrics=True).decode()

    for names in (
        {sample.name for family in parse_text(text) for sample in family.samples},
        {sample.name for family in parse_openmetrics(openmetrics) for sample in family.samples},
    ):
        assert {"process_resident_memory_bytes", "python_info", "curfew_build_info"} <= names
        assert "python_gc_collections_total" in names
        assert not {name for name in names if name.endswith("_created")}
    assert 'version="1.2.3"' in text
    assert openmetrics.endswith("# EOF\n")


def test_registries_are_apart() -> None:
    """Two instances share nothing, and a given registry is used."""
    registry = CollectorRegistry()
    mine, other = Metrics(registry), Metrics()
    mine.sweep_failed()

    assert mine.registry is registry
    assert value(other, "curfew_sweeps_total", outcome="error") == 0


def test_table_has_a_row_for_every_metric() -> None:
    """The documentation table lists every metric once, with its label values, in valid Markdown columns."""
    lines = module.table().splitlines()

    assert [line.split("`")[1] for line in lines[2:]] == [metric.name for metric in METRICS]
    assert {line.count("|") for line in lines} == {5}
    assert "`outcome`: ok, error" in module.table()


def test_operators_guide_holds_the_table() -> None:
    """The operator's guide carries the catalogue as the code has it."""
    assert module.table() in GUIDE.read_text(encoding="utf-8")
