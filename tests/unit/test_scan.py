"""The low-water mark: where a look begins, when it is full, and what makes the mark forget."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest

from curfew_daemon.scan import EXPENSIVE, EXPENSIVE_PERIOD, MARGIN, LowWaterMark

NOON = datetime(2030, 5, 1, 12, tzinfo=UTC)
POLL = 1.0


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


def seconds(amount: float) -> timedelta:
    return timedelta(seconds=amount)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def mark(clock: Clock) -> LowWaterMark:
    return LowWaterMark(lambda: POLL, clock)


def look(
    mark: LowWaterMark, now: datetime, *, earliest: datetime | None = None, full: bool = False, cost: float = 0.001
) -> None:
    mark.learned(now=now, earliest_overdue=earliest, full=full, duration=cost)


def test_the_first_look_is_full_and_the_next_begins_a_margin_behind_the_clock(mark: LowWaterMark) -> None:
    """Nothing is known at first; then the mark stays behind the database's clock."""
    assert mark.look_from() is None
    look(mark, NOON, full=True)
    assert mark.look_from() == mark.since == NOON - MARGIN


def test_the_mark_never_passes_an_overdue_run(mark: LowWaterMark) -> None:
    """A run that somebody holds locked keeps the mark before it, however late it gets."""
    held = NOON - seconds(60)
    look(mark, NOON, earliest=held, full=True)
    assert mark.since is not None
    assert mark.since < held
    look(mark, NOON + seconds(5), earliest=held)
    assert mark.since < held


def test_a_partial_look_moves_the_mark_forward_only(mark: LowWaterMark) -> None:
    """It has seen nothing of what lies behind where it began, so it cannot move the mark there."""
    look(mark, NOON, full=True)
    look(mark, NOON + seconds(0.2))
    assert mark.since == NOON + seconds(0.2) - MARGIN
    look(mark, NOON + seconds(0.3), earliest=NOON - seconds(9))
    assert mark.since == NOON + seconds(0.2) - MARGIN


def test_a_full_look_may_move_the_mark_back(mark: LowWaterMark) -> None:
    """A deadline written behind the mark is found by a full look, and the claim begins before it."""
    look(mark, NOON, full=True)
    late = NOON - seconds(30)
    look(mark, NOON + seconds(1), earliest=late, full=True)
    assert mark.since is not None
    assert mark.since < late


def test_every_poll_is_full_while_a_full_look_is_cheap(mark: LowWaterMark, clock: Clock) -> None:
    """A poll that comes a little early is full all the same; looks in between are not."""
    look(mark, NOON, full=True)
    clock.now += 0.5
    assert mark.look_from() is not None
    clock.now += 0.45
    assert mark.look_from() is None
    assert mark.full_look_in is None
    assert mark.period == POLL


def test_an_expensive_full_look_keeps_a_period_within_two_seconds(mark: LowWaterMark, clock: Clock) -> None:
    """It is repeated after its period, and says when, since polls need not fall on that moment."""
    look(mark, NOON, full=True, cost=2 * EXPENSIVE)
    assert mark.period == EXPENSIVE_PERIOD < 2
    assert mark.full_look_in == EXPENSIVE_PERIOD
    clock.now += 1.0
    assert mark.look_from() is not None
    clock.now += EXPENSIVE_PERIOD - 1.0
    assert mark.look_from() is None


@pytest.mark.parametrize("step", [timedelta(0), -seconds(3600)])
def test_a_clock_that_did_not_advance_resets_the_mark(mark: LowWaterMark, step: timedelta) -> None:
    """After a step back, deadlines that had passed may lie ahead of the clock and behind the mark."""
    look(mark, NOON, full=True)
    look(mark, NOON + step)
    assert mark.since is None
    assert mark.look_from() is None


def test_another_connection_resets_the_mark(mark: LowWaterMark) -> None:
    """It may lead to another server, whose clock and rows are others."""
    look(mark, NOON, full=True)
    mark.reset()
    assert mark.since is None
    assert mark.look_from() is None
    look(mark, NOON - seconds(3600), full=True)
    assert mark.since == NOON - seconds(3600) - MARGIN


def test_a_deadline_that_no_store_wrote_keeps_the_search_whole(mark: LowWaterMark) -> None:
    """`-infinity` reads as the year 1, and nothing lies before it for sure."""
    look(mark, NOON, earliest=datetime.min.replace(tzinfo=UTC), full=True)
    assert mark.since is None


def test_the_mark_lies_a_microsecond_before_the_earliest_overdue_run(mark: LowWaterMark) -> None:
    """The next claim begins behind the mark, and that run is its first."""
    held = NOON - seconds(60)
    look(mark, NOON, earliest=held, full=True)
    assert mark.since == held - timedelta(microseconds=1)


@pytest.mark.parametrize(("year", "kept"), [(1999, False), (2000, True), (2001, True)])
def test_years_that_a_store_writes_keep_a_mark(mark: LowWaterMark, year: int, kept: bool) -> None:
    """The store takes deadlines from the year 2000 on."""
    look(mark, NOON, earliest=datetime(year, 6, 1, tzinfo=UTC), full=True)
    assert (mark.since is not None) is kept


def test_a_full_look_is_due_at_once_at_the_earliest(mark: LowWaterMark, clock: Clock) -> None:
    """One that is late is due in no time, not in less."""
    look(mark, NOON, full=True, cost=2 * EXPENSIVE)
    clock.now += EXPENSIVE_PERIOD - 0.25
    assert mark.full_look_in == 0.25
    clock.now += 5
    assert mark.full_look_in == 0.0


def test_a_full_look_that_was_dear_may_be_cheap_again(mark: LowWaterMark) -> None:
    """Each decides for the next; a partial one says nothing of it."""
    look(mark, NOON, full=True, cost=2 * EXPENSIVE)
    look(mark, NOON + seconds(1), cost=0.0)
    assert mark.period == EXPENSIVE_PERIOD
    look(mark, NOON + seconds(2), full=True, cost=EXPENSIVE)
    assert mark.period == POLL


def test_a_poll_interval_beyond_the_period_is_the_period(clock: Clock) -> None:
    """Nobody looks more often than the poll comes."""
    mark = LowWaterMark(lambda: 7.0, clock)
    look(mark, NOON, full=True, cost=2 * EXPENSIVE)
    assert mark.period == 7.0


def test_a_margin_and_a_period_are_what_the_promise_needs() -> None:
    """What commits half a second late is seen by every look; what is written behind the mark is found within 2 s."""
    assert seconds(0.5) == MARGIN
    assert EXPENSIVE_PERIOD == 1.5


def test_a_reset_makes_a_full_look_due_on_any_clock() -> None:
    """A monotonic clock may have begun just now."""
    clock = Clock(0.25)
    mark = LowWaterMark(lambda: POLL, clock)
    look(mark, NOON, full=True, cost=2 * EXPENSIVE)
    mark.reset()
    assert mark.full_look_in == 0.0
