"""One sweep on a real database: what it marks, what it leaves alone, what it says, and what it costs."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.pool import NullPool

from curfew_daemon.results import MarkedBatch
from curfew_daemon.scan import EXPENSIVE_PERIOD, LowWaterMark
from curfew_daemon.sweeper import Sweeper
from curfew_store import enforcement
from curfew_store.hints import Hint
from curfew_store.schema import tables_in
from tests.conftest import Database
from tests.integration.contract.rows import STATES, Rows
from tests.integration.sessions import eventually, together

NOBODY = UUID(int=0)
TABLES = tables_in("public")


class Bench:
    """A sweeper and what it told."""

    def __init__(self, conn: Connection, batch_size: int = 500, mark: LowWaterMark | None = None) -> None:
        self.batches: list[MarkedBatch] = []
        self.beats = 0
        self.on_batch: Callable[[], None] = lambda: None
        self.on_beat: Callable[[int], None] = lambda _beats: None
        self.stopping = False
        self.batch_size = batch_size
        self.sweeper = Sweeper(
            TABLES,
            lambda: conn,
            batch_size=lambda: self.batch_size,
            on_batch=self._batch,
            beat=self._beat,
            stopping=lambda: self.stopping,
            mark=mark,
        )

    def _batch(self, batch: MarkedBatch) -> None:
        self.batches.append(batch)
        self.on_batch()

    def _beat(self) -> None:
        self.beats += 1
        self.on_beat(self.beats)

    @property
    def marked(self) -> list[UUID]:
        return [run.run_id for batch in self.batches for run in batch.runs]


def due(rows: Rows, count: int) -> list[UUID]:
    """Overdue runs with deadlines a second apart, the earliest first."""
    return [rows.insert(timeout_at_utc=f"now() - interval '{count - n} seconds'") for n in range(count)]


def fill(rows: Rows, count: int) -> None:
    """So many overdue runs at once."""
    rows.sql(
        "INSERT INTO flow_run_controls (run_id, timeout_at_utc) SELECT gen_random_uuid(), now() - interval '1 hour' "
        f"+ n * interval '1 ms' FROM generate_series(1, {count}) n"
    )


def unmarked(rows: Rows) -> int:
    return int(rows.sql("SELECT count(*) FROM flow_run_controls WHERE timed_out_at_utc IS NULL")[0][0])


# What is marked


def test_overdue_runs_are_marked_and_no_other_row_is_written(rows: Rows, conn: Connection) -> None:
    """A run in every state: only the overdue one changes; of the others not even xmin does."""
    runs = {state: rows.insert(state) for state in STATES}
    late = {"timeout_at_utc": "now() - interval '1 hour'"}
    for state in ("cancelled", "timed_out", "timed_out_after_cancel", "completed", "completed_after_cancel"):
        runs[f"{state}, deadline passed"] = rows.insert(state, **late)
    runs["due in the year 20000"] = rows.insert(timeout_at_utc="'20000-01-01 00:00+00'")
    runs["never due"] = rows.insert(timeout_at_utc="'infinity'")
    before = {state: rows.row(run) for state, run in runs.items()}
    bench = Bench(conn)

    result = bench.sweeper.run_once()

    changed = {state: rows.changed(before[state], run) for state, run in runs.items()}
    assert {state for state, columns in changed.items() if columns} == {"overdue"}
    assert bench.marked == [runs["overdue"]]
    assert (result.marked, result.run_ids, result.overdue_remains) == (1, (runs["overdue"],), False)
    assert result.next_due_in == pytest.approx(3600, abs=60)


@pytest.mark.parametrize(("count", "batch_size", "claims"), [(0, 3, 1), (2, 3, 1), (3, 3, 3), (7, 3, 4), (9, 3, 5)])
def test_a_drain_goes_in_batches_until_a_pass_begins_short(
    rows: Rows, conn: Connection, count: int, batch_size: int, claims: int
) -> None:
    """Oldest deadline first, a batch at a time; after a full batch the start of the index is looked at again."""
    runs = due(rows, count)
    bench = Bench(conn, batch_size)

    result = bench.sweeper.run_once("deadline")

    assert bench.marked == runs
    assert [len(batch.runs) for batch in bench.batches] == [
        min(batch_size, count - start) for start in range(0, count, batch_size)
    ]
    assert (result.marked, result.batches, result.statements) == (count, len(bench.batches), claims + 1)
    assert result.run_ids == tuple(runs[:5])


class Ticks:
    """A monotonic clock that stands until it is told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


LATE = "'2020-01-01 00:00+00'"


@pytest.mark.parametrize(
    "how", ["a deadline in the past", "committed long after it was computed", "locked and freed again"]
)
def test_what_falls_due_behind_the_mark_is_marked_by_the_next_full_look(
    rows: Rows, conn: Connection, database: Database, how: str
) -> None:
    """Whatever is written behind the mark is not seen by a look from the mark, and is by a full one."""
    clock = Ticks()
    bench = Bench(conn, mark=LowWaterMark(lambda: 1.0, clock))
    with database.engine.connect() as other:
        insert = f"INSERT INTO flow_run_controls (run_id, timeout_at_utc) VALUES (gen_random_uuid(), {LATE})"
        if how == "committed long after it was computed":
            other.exec_driver_sql(insert)
        if how == "locked and freed again":
            rows.sql(insert)
            other.exec_driver_sql("SELECT * FROM flow_run_controls FOR UPDATE")
        bench.sweeper.run_once()
        assert bench.marked == []
        if how == "a deadline in the past":
            rows.sql(insert)
        other.commit()

    result = bench.sweeper.run_once("poll")
    seen_from_the_mark = how == "locked and freed again"  # a run that was seen keeps the mark before it
    assert (result.marked, result.full_look) == (1 if seen_from_the_mark else 0, None)
    clock.now += EXPENSIVE_PERIOD
    result = bench.sweeper.run_once("poll")

    assert result.full_look is not None
    assert unmarked(rows) == 0
    assert len(bench.marked) == 1


def test_another_connection_begins_without_a_mark(database: Database, rows: Rows) -> None:
    """What was learned through one may not hold behind another, perhaps on another server: the first look is full."""
    with database.engine.connect() as first, database.engine.connect() as second:
        conns = [each.execution_options(isolation_level="AUTOCOMMIT") for each in (first, second)]
        given = iter([conns[0], conns[0], conns[1], conns[1]])
        sweeper = Sweeper(
            TABLES,
            lambda: next(given),
            batch_size=lambda: 200,
            on_batch=lambda _: None,
            mark=LowWaterMark(lambda: 3600.0),
        )
        assert [sweeper.run_once().full_look is not None for _ in range(4)] == [True, False, True, False]


def test_a_mark_that_is_never_reset_would_miss_a_step_of_the_clock(rows: Rows, conn: Connection) -> None:
    """The mark is behind a clock that stood still; the sweep after it looks everywhere again."""
    clock = Ticks()
    mark = LowWaterMark(lambda: 1.0, clock)
    bench = Bench(conn, mark=mark)
    bench.sweeper.run_once()
    ahead = datetime.now(UTC) + timedelta(hours=1)
    mark.learned(now=ahead, earliest_overdue=None, full=True, duration=0.0)  # the clock before it was stepped back
    rows.sql("INSERT INTO flow_run_controls (run_id, timeout_at_utc) VALUES (gen_random_uuid(), now())")

    bench.sweeper.run_once("poll")
    bench.sweeper.run_once("poll")

    assert unmarked(rows) == 0


def test_a_standby_leaves_a_run_to_others_for_its_slack(rows: Rows, conn: Connection) -> None:
    """Overdue for less than the slack it is left alone and reported; overdue for more it is marked."""
    rows.insert(timeout_at_utc="now() - interval '5 s'")
    bench = Bench(conn)
    left = bench.sweeper.run_once("deadline", slack=60.0)
    assert (left.marked, left.overdue_remains, left.statements) == (0, True, 1)
    assert left.overdue_age >= 5
    assert bench.sweeper.run_once("deadline", slack=1.0).marked == 1


def test_a_sweep_that_was_beaten_says_so_and_one_whose_run_was_disarmed_does_not(rows: Rows, conn: Connection) -> None:
    """Only a run that another daemon marked tells of another daemon; one marked before it was due does not."""
    for change, beaten in (
        ("timed_out_at_utc = timeout_at_utc", True),
        ("timed_out_at_utc = now()", False),
        ("completed_at_utc = now()", False),
        ("timeout_at_utc = NULL", False),
    ):
        run = rows.insert(timeout_at_utc="now() + interval '1 hour'")
        bench = Bench(conn)
        bench.sweeper.run_once()
        rows.sql(f"UPDATE flow_run_controls SET {change} WHERE run_id = :run", run=run)
        assert bench.sweeper.run_once("deadline").beaten is beaten


@pytest.mark.parametrize(("marked", "beaten"), [("-1 minute", False), ("1 minute", True)])
def test_a_hint_of_a_run_that_had_its_mark_is_no_race_lost(
    rows: Rows, conn: Connection, *, marked: str, beaten: bool
) -> None:
    """A producer may set a deadline on a run that has timed out, and anybody may notify: only a later mark counts."""
    run = rows.insert("timed_out")
    deadline: datetime = rows.sql("SELECT now() + interval '1 second'")[0][0]
    rows.sql(
        "UPDATE flow_run_controls SET timed_out_at_utc = now() + CAST(:marked AS interval) WHERE run_id = :run",
        run=run,
        marked=marked,
    )
    bench = Bench(conn)
    bench.sweeper.run_once()
    bench.sweeper.expect(Hint(deadline, run), time.monotonic())
    assert bench.sweeper.run_once("hint").beaten is beaten


def test_a_pass_continues_behind_its_cursor(rows: Rows, conn: Connection) -> None:
    """The second batch starts behind the last run of the first, by deadline and then by run id."""
    for _ in range(6):
        rows.insert(timeout_at_utc="'2026-01-01 00:00+00'")
    bench = Bench(conn, 2)
    sent: list[dict[str, object]] = []

    def remember(_c: object, _u: object, statement: str, parameters: dict[str, object], *_: object) -> None:
        if "UPDATE" in statement:
            sent.append(parameters)

    event.listen(conn, "before_cursor_execute", remember)
    bench.sweeper.run_once()

    cursors = [parameters.get("after_run_id") for parameters in sent]
    # Each pass begins at the mark, a place without a run.
    assert cursors == [NOBODY, bench.marked[1], bench.marked[3], bench.marked[5], NOBODY]
    assert bench.marked == sorted(bench.marked)


def test_a_run_that_moves_behind_the_cursor_is_marked_in_the_same_sweep(rows: Rows, conn: Connection) -> None:
    """Armed anew with its old deadline while the drain has gone past it, a run is found by the further pass."""
    first, *others = due(rows, 6)
    bench = Bench(conn, 2)

    def rearm() -> None:
        if len(bench.batches) == 2:
            rows.sql(
                "UPDATE flow_run_controls SET timed_out_at_utc = NULL, cancel_requested = false WHERE run_id = :run",
                run=first,
            )

    bench.on_batch = rearm
    result = bench.sweeper.run_once()

    assert bench.marked == [first, *others, first]
    assert (result.marked, unmarked(rows)) == (7, 0)


def test_a_batch_size_that_changes_counts_from_the_next_batch(rows: Rows, conn: Connection) -> None:
    """A reload in the middle of a drain neither ends it nor skips runs."""
    runs = due(rows, 9)
    bench = Bench(conn, 2)

    def change() -> None:
        bench.batch_size = 4

    bench.on_batch = change
    bench.sweeper.run_once()
    assert [len(batch.runs) for batch in bench.batches] == [2, 4, 3]
    assert bench.marked == runs


def test_two_sweepers_mark_each_run_once(rows: Rows, database: Database) -> None:
    """At the same time on the same runs, they share the work and never a run."""
    fill(rows, 1000)
    engine: Engine = create_engine(database.url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with engine.connect() as one, engine.connect() as two:
        benches = [Bench(one, 20), Bench(two, 20)]

        def drained(bench: Bench) -> int:
            marked = 0
            while (result := bench.sweeper.run_once("more")).marked or result.overdue_remains:
                marked += result.marked
            return marked

        shares = together([lambda bench=bench: drained(bench) for bench in benches])  # type: ignore[misc]
    engine.dispose()
    assert sum(shares) == 1000
    assert len({*benches[0].marked, *benches[1].marked}) == 1000
    assert unmarked(rows) == 0


# What others hold


def test_a_held_run_hides_neither_others_nor_the_next_deadline(rows: Rows, conn: Connection) -> None:
    """It is passed over and reported as remaining; it is marked once it is free."""
    held, free = due(rows, 2)
    rows.insert(timeout_at_utc="now() + interval '100 seconds'")
    bench = Bench(conn)
    with rows.held("SELECT 1 FROM flow_run_controls WHERE run_id = :run FOR UPDATE", run=held):
        result = bench.sweeper.run_once()
        assert (bench.marked, result.overdue_remains) == ([free], True)
        assert result.next_due_in == pytest.approx(100, abs=30)
        again = bench.sweeper.run_once("blocked")
        assert (again.marked, again.overdue_remains) == (0, True)
    assert bench.sweeper.run_once("blocked").run_ids == (held,)


def test_a_run_cancelled_by_its_holder_is_left_alone(rows: Rows, conn: Connection) -> None:
    """A cancel that commits first wins."""
    (held,) = due(rows, 1)
    bench = Bench(conn)
    cancel = "UPDATE flow_run_controls SET cancel_requested = true WHERE run_id = :run"
    with rows.held(cancel, run=held) as holder:
        assert bench.sweeper.run_once().overdue_remains
        holder.commit()
    assert bench.sweeper.run_once().overdue_remains is False
    assert bench.marked == []


def test_a_deadline_that_falls_between_claim_and_look_does_not_wait_with_a_held_run(
    rows: Rows, conn: Connection
) -> None:
    """The look cannot tell it from the run that is held, so a known deadline that has passed is claimed again."""
    (held,) = due(rows, 1)
    bench = Bench(conn)
    with rows.held("SELECT 1 FROM flow_run_controls WHERE run_id = :run FOR UPDATE", run=held):
        near = rows.insert(timeout_at_utc="now() + interval '400 ms'")

        def wait(beats: int) -> None:
            if beats == 3:  # connected, looked, claimed
                passed = "SELECT timeout_at_utc < clock_timestamp() FROM flow_run_controls WHERE run_id = :run"
                eventually(lambda: rows.sql(passed, run=near)[0][0], "the deadline passes")

        bench.on_beat = wait
        assert bench.sweeper.run_once("blocked").run_ids == (near,)


def test_a_held_run_alone_is_not_claimed_over_and_over(rows: Rows, conn: Connection) -> None:
    """With no deadline passing meanwhile, a blocked sweep is three statements."""
    (held,) = due(rows, 1)
    with rows.held("SELECT 1 FROM flow_run_controls WHERE run_id = :run FOR UPDATE", run=held):
        assert Bench(conn).sweeper.run_once("blocked").statements == 3


# Stopping and beating


def test_a_stop_ends_the_drain_between_two_batches(rows: Rows, conn: Connection) -> None:
    """The batch in hand is whole, no further one begins, and what remains is said."""
    runs = due(rows, 6)
    bench = Bench(conn, 2)

    def stop() -> None:
        bench.stopping = True

    bench.on_batch = stop
    result = bench.sweeper.run_once()
    assert bench.marked == runs[:2]
    assert (result.batches, result.overdue_remains, unmarked(rows)) == (1, True, 4)


def test_a_beat_follows_every_wait_on_the_database(rows: Rows, conn: Connection) -> None:
    """However long a drain takes, the loop shows itself after the connect and after each statement."""
    due(rows, 7)
    bench = Bench(conn, 2)
    result = bench.sweeper.run_once()
    assert result.statements >= 6
    assert bench.beats == result.statements + 1


def test_an_error_of_the_database_is_raised(rows: Rows, conn: Connection) -> None:
    """What it means is for the loop to decide."""
    rows.sql("DROP TABLE flow_run_controls")
    with pytest.raises(Exception, match="flow_run_controls"):
        Bench(conn).sweeper.run_once()


# What it says


def test_lag_ends_when_the_commit_was_acknowledged(rows: Rows, conn: Connection) -> None:
    """Stamp minus deadline plus the round trip: a claim that takes long is not flattered by its early stamp."""
    rows.sql(
        "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN PERFORM pg_sleep(0.3); RETURN new; END $$"
    )
    rows.sql("CREATE TRIGGER dawdle BEFORE UPDATE ON flow_run_controls FOR EACH ROW EXECUTE FUNCTION dawdle()")
    run = rows.insert(timeout_at_utc="now() - interval '10 seconds'")
    bench = Bench(conn)

    result = bench.sweeper.run_once()

    (batch,) = bench.batches
    (marked,) = batch.runs
    assert marked.run_id == run
    stamped = (marked.timed_out_at - marked.deadline).total_seconds()
    assert batch.round_trip >= 0.3
    assert list(batch.lags) == pytest.approx([stamped + batch.round_trip])
    assert result.lag_max == batch.lags[0] >= 10.3
    assert result.duration >= 0.3


def test_the_greatest_lag_of_all_batches_is_said(rows: Rows, conn: Connection) -> None:
    """The oldest deadline comes first and decides; odd deadlines of others have no lag."""
    rows.insert(timeout_at_utc="'-infinity'")
    due(rows, 5)
    result = Bench(conn, 2).sweeper.run_once()
    assert result.marked == 6
    assert result.lag_max is not None
    assert 5 <= result.lag_max < 60


def test_only_runs_without_a_lag_give_none(rows: Rows, conn: Connection) -> None:
    """A deadline of minus infinity is marked, and says nothing about lateness."""
    rows.insert(timeout_at_utc="'-infinity'")
    result = Bench(conn).sweeper.run_once()
    assert (result.marked, result.lag_max) == (1, None)


def test_the_next_deadline_counts_from_when_it_was_asked_for(rows: Rows, conn: Connection) -> None:
    """Waiting for that long from the end of the sweep never ends after the deadline."""
    deadline = datetime.now(UTC) + timedelta(seconds=30)
    rows.insert(timeout_at_utc=f"'{deadline.isoformat()}'")
    result = Bench(conn).sweeper.run_once()
    assert result.next_due_in is not None
    assert result.next_due_in <= (deadline - datetime.now(UTC)).total_seconds() + 0.002


@pytest.mark.parametrize("reason", ["start", "poll", "deadline", "hint"])
def test_the_reason_is_handed_on(conn: Connection, reason: str) -> None:
    """The result says why the sweep woke."""
    assert Bench(conn).sweeper.run_once(reason).reason == reason


# What it costs


def test_an_idle_sweep_is_one_read_only_statement(rows: Rows, conn: Connection) -> None:
    """With nothing overdue it sends one SELECT, which runs in a read-only transaction and takes no id."""
    for state in STATES:
        if state != "overdue":
            rows.insert(state)
    sent: list[str] = []
    event.listen(conn, "before_cursor_execute", lambda _c, _u, statement, *_: sent.append(statement))

    result = Bench(conn).sweeper.run_once()
    assert (result.statements, len(sent)) == (1, 1)

    with rows.engine.connect() as plain:
        once = plain.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        assert Bench(once).sweeper.run_once().marked == 0
        assert once.execute(text("SELECT pg_current_xact_id_if_assigned()")).scalar_one() is None


def test_a_long_drain_keeps_nothing_but_five_run_ids(rows: Rows, conn: Connection) -> None:
    """The memory of a drain of 20 batches is that of one batch."""

    def peak(count: int) -> int:
        fill(rows, count)
        sweeper = Sweeper(TABLES, lambda: conn, batch_size=lambda: 200, on_batch=lambda _: None)
        tracemalloc.start()
        try:
            result = sweeper.run_once()
            assert (result.marked, len(result.run_ids)) == (count, 5)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(200)  # compiles the statements
    one = peak(200)
    assert peak(4000) < 4 * one  # keeping all would be 20 times


def test_durations_are_measured_on_the_monotonic_clock(conn: Connection) -> None:
    """The duration of a sweep is no more than what passed around it."""
    began = time.monotonic()
    result = Bench(conn).sweeper.run_once()
    assert 0 < result.duration <= time.monotonic() - began


def test_no_sweep_waits_for_a_statement_to_be_compiled(rows: Rows, conn: Connection) -> None:
    """All of them are ready once the sweeper is made: the first deadline is met as fast as any other."""
    texts = (enforcement._claim_text, enforcement._look_ahead_text)
    for each in texts:
        each.cache_clear()
    bench = Bench(conn, 2)
    compiled = [each.cache_info().misses for each in texts]
    due(rows, 5)
    rows.insert(timeout_at_utc="now() + interval '1 hour'")
    for _ in range(3):
        bench.sweeper.run_once("poll")
    assert [each.cache_info().misses for each in texts] == compiled
