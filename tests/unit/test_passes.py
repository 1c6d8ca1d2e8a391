"""Passes by themselves: how large each batch is, where it begins, and how one run at fault is found.

The claims are played by a list of runs that are due; what they do in PostgreSQL stands in
`tests/integration/test_sweeper.py` and `test_isolation.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
import sqlalchemy.exc

from curfew_daemon import passes
from curfew_daemon.isolation import MOST_ASIDE, Isolation
from curfew_daemon.passes import FIRST_BATCH, LARGEST_BATCH, Claims, Tally, _Pace
from curfew_daemon.results import MarkedBatch
from curfew_store.records import ClaimedBatch, ClaimedRun, ScanStart
from curfew_store.schema import tables_in

NOON = datetime(2030, 5, 1, 12, tzinfo=UTC)


def run(number: int) -> ClaimedRun:
    """The run with this number, due that many microseconds after noon."""
    due = NOON + timedelta(microseconds=number)
    return ClaimedRun(UUID(int=number), UUID(int=0), due, NOON + timedelta(hours=1))


def refusal(error: psycopg.Error) -> sqlalchemy.exc.DBAPIError:
    """An error of the server, as SQLAlchemy hands it on."""
    return sqlalchemy.exc.DBAPIError("UPDATE", {}, error)


RAISED = refusal(psycopg.errors.RaiseException("poison"))
TOO_SLOW = refusal(psycopg.errors.QueryCanceled("statement timeout"))


class Script:
    """Runs that are due, and some among them that no claim may hold."""

    def __init__(self, due: int, poison: Sequence[int] = (), *, most: int = 4000) -> None:
        self.due = [run(number) for number in range(1, due + 1)]
        self.poison = {UUID(int=number) for number in poison}
        self.asked: list[tuple[int, ClaimedRun | ScanStart | None]] = []
        self.refused: list[UUID] = []
        self.told: list[tuple[int, bool]] = []
        self.marked: list[UUID] = []
        self.vanishes = 0
        self.taken_by_another = False
        self.of_the_statement = False
        self.stopping = False
        self.errors: list[Exception] = []
        self.on_refused: Callable[[], None] = lambda: None
        self.on_batch: Callable[[], None] = lambda: None
        self.isolation = Isolation(self._refused, clock=lambda: 0.0)
        self.tally = Tally()
        self.claims = Claims(
            tables_in("public"),
            most=lambda: most,
            on_batch=self._batch,
            stopping=lambda: self.stopping,
            isolation=self.isolation,
        )

    @property
    def limits(self) -> list[int]:
        return [limit for limit, _ in self.asked]

    def go(self, since: datetime | None = None) -> int:
        conn: Any = None
        return self.claims.one_pass(conn, self.tally, since, after_each=self._after_each)

    def _refused(self, run_id: UUID, _pause: float, _error: BaseException) -> None:
        self.refused.append(run_id)
        self.on_refused()

    def _batch(self, batch: MarkedBatch) -> None:
        self.marked += [each.run_id for each in batch.runs]
        self.on_batch()

    def _after_each(self, batch: MarkedBatch, full: bool) -> None:
        self.told.append((len(batch.runs), full))

    def _candidates(self, skipping: Sequence[UUID]) -> list[ClaimedRun]:
        return [each for each in self.due if each.run_id not in skipping]

    def claim_overdue(
        self, _conn: Any, _tables: Any, *, limit: int, after: Any = None, skipping: Sequence[UUID] = ()
    ) -> ClaimedBatch:
        if limit == 0:
            if self.of_the_statement:
                raise RAISED
            return ClaimedBatch([])
        self.asked.append((limit, after))
        if self.errors:
            raise self.errors.pop(0)
        taken = self._candidates(skipping)[:limit]
        if self.poison & {each.run_id for each in taken}:
            raise RAISED
        marked = {each.run_id for each in taken}
        self.due = [each for each in self.due if each.run_id not in marked]
        return ClaimedBatch.of(taken)

    def first_due(self, _conn: Any, _tables: Any, *, after: Any, skipping: Sequence[UUID]) -> UUID | None:
        if self.vanishes:
            self.vanishes -= 1
            if not self.vanishes and self.taken_by_another:
                self.taken_by_another = False
                self.due.pop(0)
            return None
        return self._candidates(skipping)[0].run_id


@pytest.fixture(autouse=True)
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a script and puts it where the claims are sent."""

    def made(due: int, poison: Sequence[int] = (), **options: int) -> Script:
        played = Script(due, poison, **options)
        monkeypatch.setattr(passes, "enforcement", played)
        return played

    return made


def test_batches_double_up_to_the_most_and_begin_behind_the_last(script: Any) -> None:
    """From 500 on; a pass ends with the batch that is not full, and has counted them all."""
    played = script(9000)
    assert played.go() == 5
    assert played.limits == [FIRST_BATCH, 1000, 2000, 4000, 4000]
    assert FIRST_BATCH == 500
    assert [after for _, after in played.asked] == [None, run(500), run(1500), run(3500), run(7500)]
    assert played.told == [(500, True), (1000, True), (2000, True), (4000, True), (1500, False)]
    assert (played.tally.marked, played.tally.batches, played.tally.statements) == (9000, 5, 5)
    assert len(played.marked) == 9000


def test_a_pass_begins_where_it_is_told_to(script: Any) -> None:
    """An empty batch ends it, counts as a claim and as no batch, and is told to nobody who hears of batches."""
    played = script(0)
    assert played.go(NOON) == 1
    assert played.asked == [(500, ScanStart(NOON))]
    assert played.told == [(0, False)]
    assert (played.tally.marked, played.tally.batches, played.tally.statements) == (0, 0, 1)


def test_a_stop_cuts_a_pass_short_behind_a_batch(script: Any) -> None:
    """What was marked stays marked."""
    played = script(9000)
    played.stopping = True
    assert played.go() == 1
    assert played.tally.marked == 500


def test_the_doubling_ends_by_itself(script: Any) -> None:
    """However many claims a pass has and whatever is set, a batch is never larger than the database's integers."""
    played = script(0, most=1 << 40)
    assert played.go() == 1
    assert LARGEST_BATCH == 1 << 30


def test_one_run_at_fault_is_found_in_four_attempts_and_set_aside(script: Any) -> None:
    """An eighth each time; behind it the batches grow again."""
    played = script(700, [1])
    played.go()
    assert played.refused == [UUID(int=1)]
    assert played.limits == [500, 62, 7, 1, 1, 8, 64, 512, 4000]
    assert played.told[:4] == [(0, False)] * 4
    assert played.tally.marked == 699
    assert played.tally.statements == 5


def test_runs_at_fault_in_the_middle_keep_nobody_else(script: Any) -> None:
    """All the others are marked in one pass."""
    poison = [3, 77, 78, 399]
    played = script(500, poison)
    played.go()
    assert played.refused == [UUID(int=number) for number in poison]
    assert played.tally.marked == 496


def test_a_run_at_fault_may_vanish_three_times_in_a_row(script: Any) -> None:
    """Somebody else had it, so the claim is tried again; in the end the sweep fails."""
    played = script(1, [1], most=1)
    played.vanishes = 3
    played.go()
    assert played.refused == [UUID(int=1)]
    assert played.limits == [1] * 5
    played = script(1, [1], most=1)
    played.vanishes = 4
    with pytest.raises(sqlalchemy.exc.DBAPIError):
        played.go()
    assert (played.limits, played.refused) == ([1] * 5, [])


def test_a_run_that_is_found_begins_the_count_anew(script: Any) -> None:
    """Only what vanished in a row counts."""
    played = script(2, [1, 2], most=1)
    played.vanishes = 3
    played.on_refused = lambda: setattr(played, "vanishes", 3)
    played.go()
    assert played.refused == [UUID(int=1), UUID(int=2)]


def test_a_claim_that_came_through_begins_the_count_anew(script: Any) -> None:
    """The next run at fault may vanish as often as the first."""
    played = script(3, [1, 3], most=1)
    played.vanishes = 3
    played.taken_by_another = True
    played.on_batch = lambda: setattr(played, "vanishes", 3)
    played.go()
    assert played.marked == [UUID(int=2)]
    assert played.refused == [UUID(int=3)]


def test_a_statement_that_fails_without_a_row_blames_none(script: Any) -> None:
    """A trigger of the whole statement; the sweep fails and nobody is set aside."""
    played = script(1, [1])
    played.of_the_statement = True
    with pytest.raises(sqlalchemy.exc.DBAPIError):
        played.go()
    assert played.refused == []


def test_too_many_refused_runs_fail_the_sweep(script: Any) -> None:
    """Then it is not single rows that are at fault."""
    played = script(1, [1])
    for number in range(MOST_ASIDE):
        played.isolation.refuse(UUID(int=10_000 + number), RAISED)
    with pytest.raises(sqlalchemy.exc.DBAPIError):
        played.go()
    assert UUID(int=1) not in played.refused


def test_a_stop_hands_on_whatever_the_database_raises(script: Any) -> None:
    """What a stop cancelled is no reason to narrow anything."""
    played = script(1, [1])
    played.stopping = True
    with pytest.raises(sqlalchemy.exc.DBAPIError):
        played.go()
    assert played.limits == [500]


def test_what_took_too_long_fails_the_sweep_and_the_next_is_a_quarter(script: Any) -> None:
    """The pace outlives the pass."""
    played = script(200)
    played.errors.append(TOO_SLOW)
    with pytest.raises(sqlalchemy.exc.DBAPIError):
        played.go()
    played.go()
    assert played.limits == [500, 125, 250]


# The pace by itself


def test_without_a_failure_the_pace_has_no_bound_of_its_own() -> None:
    """And does not grow beyond the largest batch."""
    pace = _Pace()
    assert pace.most == LARGEST_BATCH
    pace.in_time(LARGEST_BATCH)
    pace.in_time(500)
    assert pace.most == LARGEST_BATCH


def test_a_batch_that_took_too_long_is_followed_by_a_quarter_down_to_one() -> None:
    """Rounded down, and never none at all."""
    pace, found, limit = _Pace(), [], 1000
    for _ in range(7):
        pace.too_slow(limit)
        limit = pace.most
        found.append(limit)
    assert found == [250, 62, 15, 3, 1, 1, 1]


def test_the_pace_doubles_to_half_of_the_first_failure_and_then_grows_by_an_eighth() -> None:
    """At least by one; a batch smaller than the bound says nothing of it."""
    pace = _Pace()
    pace.too_slow(1000)
    pace.too_slow(250)
    found = []
    for _ in range(7):
        pace.in_time(pace.most)
        found.append(pace.most)
    assert found == [124, 248, 496, 558, 627, 705, 793]
    pace.in_time(792)
    assert pace.most == 793


def test_the_smallest_pace_grows_too() -> None:
    """By one, where an eighth is none."""
    pace = _Pace()
    for limit in (4, 1):
        pace.too_slow(limit)
    found = []
    for _ in range(4):
        pace.in_time(pace.most)
        found.append(pace.most)
    assert found == [2, 3, 4, 5]


def test_a_failure_after_a_success_is_a_first_one_again() -> None:
    """The pace doubles to half of that one only."""
    pace = _Pace()
    pace.too_slow(1000)
    pace.in_time(250)
    pace.too_slow(500)
    found = []
    for _ in range(3):
        pace.in_time(pace.most)
        found.append(pace.most)
    assert found == [250, 281, 316]


# The tally


def batch(numbers: Sequence[int], round_trip: float = 0.0) -> MarkedBatch:
    """A batch of the runs with these numbers."""
    return MarkedBatch([run(number) for number in numbers], round_trip)


def test_a_tally_begins_at_nothing_and_shows_the_first_five_runs() -> None:
    """However many batches they come in."""
    tally = Tally()
    assert (tally.marked, tally.batches, tally.statements, tally.run_ids, tally.lag_max) == (0, 0, 0, [], None)
    tally.add(batch([1, 2]))
    tally.add(batch([3, 4, 5, 6, 7]))
    tally.add(batch([8]))
    assert tally.run_ids == [UUID(int=number) for number in range(1, 6)]
    assert (tally.marked, tally.batches) == (8, 3)


def test_a_tally_keeps_the_greatest_lag_and_adds_up_what_others_did() -> None:
    """A batch without a lag changes nothing of it, and the runs of others are not shown."""
    tally, other = Tally(statements=2), Tally(statements=3)
    tally.add(batch([1], 5.0))
    first = tally.lag_max
    tally.add(batch([2], 1.0))
    assert tally.lag_max == first
    other.add(batch([9], 7.0))
    tally.merge(other)
    tally.merge(Tally())
    assert tally.lag_max == other.lag_max
    assert (tally.marked, tally.batches, tally.statements) == (3, 3, 5)
    assert tally.run_ids == [UUID(int=1), UUID(int=2)]
