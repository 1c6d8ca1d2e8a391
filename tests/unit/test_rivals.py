"""What a daemon learns of others: when it was beaten, and which lags tell that whoever was faster is gone."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest

from curfew_daemon.rivals import UNDECIDED_FOR, Rivals

NOON = datetime(2030, 5, 1, 12, tzinfo=UTC)
OURS, THEIRS, LATER = 1, 2, 3


@dataclass(frozen=True)
class Run:
    run_id: int
    deadline: datetime


def seconds(amount: float) -> timedelta:
    return timedelta(seconds=amount)


@pytest.fixture
def rivals() -> Rivals[int]:
    """A daemon that knows, from a sweep at noon, of the run that is due a second later."""
    rivals: Rivals[int] = Rivals()
    rivals.begin()
    look(rivals, at=0.0, next_run=OURS, next_due_in=1.0)
    rivals.begin()
    return rivals


def look(
    rivals: Rivals[int],
    *,
    at: float,
    overdue: float | None = None,
    next_run: int | None = LATER,
    next_due_in: float | None = 5.0,
    marked: bool | None = None,
) -> None:
    rivals.looked(
        now=NOON + seconds(at),
        earliest_overdue=None if overdue is None else NOON + seconds(overdue),
        next_run=next_run,
        next_due_in=next_due_in,
        expected_marked=marked,
    )


def claim(rivals: Rivals[int], *runs: tuple[int, float], at: float, full: bool = False) -> None:
    marked = [Run(run_id, NOON + seconds(deadline)) for run_id, deadline in runs]
    rivals.claimed(marked, stamp=NOON + seconds(at), round_trip=0.001, full=full)


def expected(rivals: Rivals[int]) -> int | None:
    return None if rivals.expected is None else rivals.expected[0]


def test_the_next_run_of_a_look_is_the_one_that_is_expected(rivals: Rivals[int]) -> None:
    """The next look is to say what became of it."""
    assert expected(rivals) == OURS
    look(rivals, at=1.0, marked=False)
    assert expected(rivals) == LATER


def test_a_run_that_another_daemon_marked_beats_us(rivals: Rivals[int]) -> None:
    """It was expected, and was marked, and not here."""
    look(rivals, at=1.002, marked=True)
    assert rivals.beaten
    rivals.begin()
    assert not rivals.beaten


def test_only_a_mark_from_the_deadline_on_tells_of_another_daemon(rivals: Rivals[int]) -> None:
    """The look is asked for marks since the deadline, give or take a millisecond: also of a run that a hint told of."""
    assert rivals.expected == (OURS, NOON + seconds(0.999))
    rivals.told(THEIRS, NOON + seconds(0.5))
    assert rivals.expected == (THEIRS, NOON + seconds(0.499))


def test_a_run_that_we_marked_ourselves_beats_nobody(rivals: Rivals[int]) -> None:
    """That it has been marked is no news."""
    claim(rivals, (OURS, 1.0), at=1.001)
    look(rivals, at=1.003, marked=True)
    assert not rivals.beaten


def test_marking_others_in_the_same_sweep_does_not_hide_a_defeat(rivals: Rivals[int]) -> None:
    """Under load every daemon always marks something."""
    claim(rivals, (THEIRS, 1.0005), at=1.001)
    look(rivals, at=1.003, marked=True)
    assert rivals.beaten


def test_where_batches_are_full_there_is_work_for_everybody(rivals: Rivals[int]) -> None:
    """A backlog is no race."""
    claim(rivals, (THEIRS, 0.5), at=1.001, full=True)
    look(rivals, at=1.003, marked=True)
    assert not rivals.beaten


@pytest.mark.parametrize("marked", [False, None])
def test_a_run_that_was_disarmed_or_deleted_says_nothing(rivals: Rivals[int], *, marked: bool | None) -> None:
    """It was not marked, and nothing is overdue."""
    look(rivals, at=1.002, marked=marked)
    assert not rivals.beaten
    assert expected(rivals) == LATER


def test_a_run_in_another_daemons_commit_is_expected_until_that_is_decided(rivals: Rivals[int]) -> None:
    """Two daemons that wake in the same instant: the claim of one finds the row locked, and no mark yet."""
    look(rivals, at=1.0005, overdue=1.0, marked=False)
    assert expected(rivals) == OURS
    rivals.begin()
    look(rivals, at=1.006, marked=True)
    assert rivals.beaten
    assert expected(rivals) == LATER


def test_a_run_that_somebody_holds_for_long_is_expected_no_more(rivals: Rivals[int]) -> None:
    """Its lock is not a daemon's."""
    look(rivals, at=1.0 + UNDECIDED_FOR.total_seconds(), overdue=1.0, marked=False)
    assert expected(rivals) == LATER


def test_the_lag_of_a_run_that_was_known_counts(rivals: Rivals[int]) -> None:
    """The earliest of them has the largest."""
    claim(rivals, (OURS, 1.0), (THEIRS, 1.2), at=1.5)
    assert rivals.known_lag == pytest.approx(0.501)
    claim(rivals, (LATER, 1.4), at=1.6)
    assert rivals.known_lag == pytest.approx(0.501)


def test_the_lag_of_a_run_that_became_visible_late_says_nothing(rivals: Rivals[int]) -> None:
    """It was due before everything that the sweep before knew of: nobody could have marked it."""
    claim(rivals, (THEIRS, -5.0), at=1.001)
    assert rivals.known_lag is None
    claim(rivals, (THEIRS, -5.0), (OURS, 1.0), at=1.001)
    assert rivals.known_lag == pytest.approx(0.002)


def test_a_run_that_was_overdue_already_counts_as_known(rivals: Rivals[int]) -> None:
    """It was left to a faster daemon, and is still there."""
    look(rivals, at=0.5, overdue=0.45, marked=False)
    rivals.begin()
    claim(rivals, (THEIRS, 0.45), at=1.45)
    assert rivals.known_lag == pytest.approx(1.001)


def test_what_this_sweep_saw_first_is_not_known_yet(rivals: Rivals[int]) -> None:
    """Only an earlier sweep can have left it to others."""
    look(rivals, at=0.9, overdue=-3.0, marked=False)
    claim(rivals, (THEIRS, -3.0), at=0.901)
    assert rivals.known_lag is None


def test_after_a_pause_nothing_is_known(rivals: Rivals[int]) -> None:
    """Another connection, perhaps another server."""
    rivals.forget()
    rivals.begin()
    claim(rivals, (OURS, 1.0), at=9.0)
    assert rivals.expected is None
    assert rivals.known_lag is None


def test_a_deadline_that_no_store_wrote_does_no_harm(rivals: Rivals[int]) -> None:
    """`-infinity` reads as the year 1, and nothing can be subtracted from it."""
    rivals.looked(
        now=NOON,
        earliest_overdue=datetime.min.replace(tzinfo=UTC),
        next_run=None,
        next_due_in=None,
        expected_marked=False,
    )
    assert rivals.expected is None


def test_a_run_that_a_hint_told_of_is_known_like_one_that_was_looked_at(rivals: Rivals[int]) -> None:
    """Marked by another when its sweep came, it was a race lost; still there when the slack is over, it counts."""
    rivals.told(THEIRS, NOON + seconds(0.5))
    rivals.begin()
    assert expected(rivals) == THEIRS
    claim(rivals, (THEIRS, 0.5), at=0.7)
    assert rivals.known_lag == pytest.approx(0.201)
    rivals.told(LATER, NOON + seconds(0.9))
    rivals.begin()
    look(rivals, at=0.901, marked=True)
    assert rivals.beaten


def test_a_hint_on_a_new_connection_is_all_that_is_known(rivals: Rivals[int]) -> None:
    """After everything was forgotten, what is due from the hinted deadline on is known, and nothing before."""
    rivals.forget()
    rivals.told(THEIRS, NOON + seconds(0.5))
    rivals.begin()
    claim(rivals, (OURS, 0.4), at=0.6)
    assert rivals.known_lag is None
    claim(rivals, (THEIRS, 0.5), at=0.6)
    assert rivals.known_lag == pytest.approx(0.101)
