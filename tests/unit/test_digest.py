"""Which marks the log tells of at once, which together, and that none is lost."""

from __future__ import annotations

from uuid import UUID

import pytest

from curfew_daemon.digest import EVERY, Digest, MarkedDigest
from curfew_daemon.results import SweepResult


class Clock:
    """A clock that stands until it is told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def sweep(marked: int, next_due_in: float | None = None, *, remains: bool = False, lag: float = 0.25) -> SweepResult:
    """What a sweep found that took an eighth of a second."""
    return SweepResult(
        reason="deadline" if marked < 5 else "more",
        marked=marked,
        batches=1 if marked else 0,
        statements=2,
        duration=0.125,
        run_ids=tuple(UUID(int=number) for number in range(marked))[:5],
        lag_max=lag if marked else None,
        next_due_in=next_due_in,
        overdue_remains=remains,
    )


@pytest.fixture
def clock() -> Clock:
    """The digest's clock."""
    return Clock()


@pytest.fixture
def digest(clock: Clock) -> Digest:
    """One that has said nothing yet."""
    return Digest(clock)


def test_the_first_marks_are_told_at_once(digest: Digest) -> None:
    """After quiet nothing is held back, however near the next deadline is."""
    said = digest.swept(sweep(3, 0.001))
    assert said == MarkedDigest(3, 0.25, 0.125, 1, 1, (UUID(int=0), UUID(int=1), UUID(int=2)), "deadline")


def test_sweeps_that_follow_closely_share_a_line_a_second(digest: Digest, clock: Clock) -> None:
    """Counts and durations add up, the lag is the greatest, runs and reason are those of the first."""
    assert digest.swept(sweep(1, 0.001)) is not None
    for number in range(9):
        clock.now += EVERY / 10
        assert digest.swept(sweep(6, 0.001, lag=float(number))) is None
    clock.now += EVERY / 10
    assert digest.swept(sweep(1, 0.001)) == MarkedDigest(
        9 * 6 + 1, 8.0, 10 * 0.125, 10, 10, tuple(UUID(int=number) for number in range(5)), "more"
    )


@pytest.mark.parametrize("next_due_in", [None, EVERY, 60.0])
def test_nothing_is_held_where_no_other_sweep_comes_within_the_second(
    digest: Digest, next_due_in: float | None
) -> None:
    """Marks are never held back longer than the second that the lines are apart."""
    assert digest.swept(sweep(1)) is not None
    assert digest.swept(sweep(1, next_due_in)) is not None


def test_runs_that_remain_bring_another_sweep_at_once(digest: Digest) -> None:
    """What became due meanwhile is swept next, so its line takes the marks along; a held run alone does not."""
    assert digest.swept(sweep(1)) is not None
    assert digest.swept(sweep(1, remains=True)) is None
    said = digest.swept(sweep(0, remains=True))
    assert said is not None
    assert said.sweeps == 1


def test_a_sweep_without_marks_tells_what_was_held(digest: Digest, clock: Clock) -> None:
    """Its line comes when the second is over, with the runs of before; and a sweep with nothing says nothing."""
    assert digest.swept(sweep(1)) is not None
    assert digest.swept(sweep(2, 0.5)) is None
    clock.now += 0.5
    assert digest.swept(sweep(0, 0.1)) is None
    clock.now += 0.5
    said = digest.swept(sweep(0, 0.1))
    assert said is not None
    assert (said.count, said.sweeps) == (2, 1)
    assert digest.swept(sweep(0)) is None


def test_what_is_held_is_told_at_the_end(digest: Digest) -> None:
    """Once; nothing is left for a second time."""
    digest.swept(sweep(1))
    digest.swept(sweep(1, 0.1))
    assert digest.flush() is not None
    assert digest.flush() is None


def test_a_lag_that_is_unknown_hides_no_other(digest: Digest) -> None:
    """Runs without a lag are counted, and the greatest of the others stands."""
    digest.swept(sweep(1))
    digest.swept(sweep(1, 0.1))
    nameless = MarkedDigest(1, None, 0.0, 1, 1, (), "more")
    held = digest.flush()
    assert held is not None
    assert nameless.and_then(held).lag_max == 0.25
    assert nameless.and_then(nameless).lag_max is None
