"""What the page would say, from what the daemon's threads have put down."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import timedelta

import pytest

from curfew_daemon.failures import REMEDIES
from curfew_daemon.results import DatabaseState
from curfew_daemon.status.board import NEWEST
from curfew_daemon.status.facts import Verdict
from tests.system.status.scenes import POLL, QUIET, Scene


@pytest.fixture
def scene() -> Scene:
    up = Scene()
    up.board.database(DatabaseState.UP)
    return up


def test_before_the_first_contact() -> None:
    """Starting; nothing is known and nothing is claimed."""
    facts = Scene().board.facts()
    assert (facts.verdict, facts.lag_now, facts.seen, facts.database) == (Verdict.STARTING, None, None, None)


def test_lag_now_is_the_greatest_of_this_minute_and_the_last(scene: Scene) -> None:
    """It is kept for one to two minutes and then gone; the hour still knows it."""
    scene.moment = 65.0
    scene.mark(1, lambda: 0.25)
    scene.mark(5, lambda: 0.01)
    assert scene.board.facts().lag_now == pytest.approx(0.2504)
    scene.moment = 179.0
    assert scene.board.facts().lag_now == pytest.approx(0.2504)
    scene.moment = 180.0
    assert scene.board.facts().lag_now is None
    assert scene.board.facts().last_hour.lags.greatest == pytest.approx(0.2504)
    assert scene.board.facts().last_marked_ago == 115.0


def test_a_run_that_still_waits_counts_as_lag(scene: Scene) -> None:
    """The oldest overdue run is the lag where it has waited longer than what was marked, and only then."""
    scene.mark(1, lambda: 0.3)
    scene.observe(replace(QUIET, overdue=1, oldest_overdue_age=0.1))
    assert (scene.board.facts().lag_now_waits, scene.board.facts().verdict) == (False, Verdict.ON_TIME)
    scene.observe(replace(QUIET, overdue=1, oldest_overdue_age=400.0))
    facts = scene.board.facts()
    assert (facts.lag_now, facts.lag_now_waits, facts.verdict) == (400.0, True, Verdict.LATE)


@pytest.mark.parametrize(("lag", "verdict"), [(POLL + 0.9, Verdict.ON_TIME), (POLL + 1.1, Verdict.LATE)])
def test_late_is_what_exceeds_the_promise(scene: Scene, lag: float, verdict: Verdict) -> None:
    """One poll interval, and a second for the way."""
    scene.mark(1, lambda: lag)
    assert scene.board.facts().verdict is verdict


def test_a_database_that_is_down_outweighs_the_rest(scene: Scene) -> None:
    """The verdict, since when, and the remedy; what was read before is old from that moment on."""
    scene.mark(1, lambda: 50.0)
    scene.observe(QUIET)
    assert scene.board.facts().seen is not None
    assert not scene.board.facts().seen.stale  # type: ignore[union-attr]
    scene.moment = 10.0
    scene.board.database(DatabaseState.DISK_FULL)
    scene.moment = 12.0
    facts = scene.board.facts()
    assert (facts.verdict, facts.database_for) == (Verdict.DATABASE_DOWN, 2.0)
    assert facts.remedy == REMEDIES[DatabaseState.DISK_FULL]
    assert facts.seen is not None
    assert (facts.seen.stale, facts.seen.age) == (True, 12.0)


def test_a_reading_that_is_not_repeated_grows_old(scene: Scene) -> None:
    """Three intervals without another one, database up or not."""
    scene.observe(QUIET)
    for moment, stale in ((15.0, False), (15.1, True)):
        scene.moment = moment
        seen = scene.board.facts().seen
        assert seen is not None
        assert seen.stale is stale


def test_stuck_is_what_a_whole_sweep_has_passed_over(scene: Scene) -> None:
    """One sweep may have begun before the reading; the second has not. A new deadline is a new wait."""
    held, extended = scene.overdue(2, lambda place: 60.0 - place)
    overdue = replace(QUIET, overdue=2, oldest_overdue_age=60.0)

    def stuck() -> list[bool]:
        seen = scene.board.facts().seen
        assert seen is not None
        return [each.stuck for each in seen.overdue]

    scene.observe(overdue, (held, extended))
    assert stuck() == [False, False]
    scene.board.swept()
    scene.observe(overdue, (held, extended))
    assert stuck() == [False, False]
    scene.board.swept()
    assert stuck() == [False, False]  # as it was when it was read
    again = replace(extended, deadline=extended.deadline + timedelta(seconds=30))
    scene.observe(overdue, (held, again))
    assert stuck() == [True, False]
    scene.board.observed(overdue, None)
    assert stuck() == []
    scene.observe(overdue, (held,))
    assert stuck() == [True]  # a reading without the list forgets nothing
    scene.observe(QUIET)
    scene.observe(overdue, (held,))
    assert stuck() == [False]


def test_the_newest_marks_come_first_and_are_few(scene: Scene) -> None:
    """Only the last ones are kept, over batches large and small."""
    scene.mark(500, lambda: 0.001)
    scene.moment = 2.0
    scene.mark(3, lambda: 0.002)
    facts = scene.board.facts()
    assert len(facts.newest) == NEWEST
    assert [round(run.lag, 4) for run in facts.newest] == [0.0024] * 3 + [0.0014] * 7
    assert facts.marked_since_start == 503


def test_no_run_is_kept_where_lists_are_switched_off() -> None:
    """Not merely hidden: the ids are not held."""
    scene = Scene(runs_shown=False)
    scene.mark(50, lambda: 0.001)
    assert scene.board.facts().newest == ()
    assert len(scene.board._newest) == 0
    assert scene.board.facts().marked_since_start == 50


def test_threads_do_not_disturb_each_other(scene: Scene) -> None:
    """Marks of four threads beside a reader all arrive."""
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            scene.board.facts()

    def write() -> None:
        for _ in range(200):
            scene.mark(2, lambda: 0.001)

    reader = threading.Thread(target=read)
    writers = [threading.Thread(target=write) for _ in range(4)]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    reader.join()
    facts = scene.board.facts()
    assert facts.marked_since_start == facts.last_hour.marked == 1600
