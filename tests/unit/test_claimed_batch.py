"""A batch of claimed runs: made of what the server sends, and read as records."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from curfew_store.records import ClaimedBatch, ClaimedRun, moment

STAMP = datetime(2026, 3, 1, 12, 0, 0, 654321, tzinfo=UTC)
SINCE = datetime(2000, 1, 1, tzinfo=UTC)


def run(number: int, age: float) -> ClaimedRun:
    """A run that was marked *age* seconds after its deadline."""
    return ClaimedRun(UUID(int=number), UUID(int=99), STAMP - timedelta(seconds=age), STAMP)


def test_runs_are_in_the_order_of_deadline_and_id_whatever_order_they_came_in() -> None:
    """As the index has them, so that the last one is where the next claim continues."""
    runs = [run(3, 9.0), run(1, 5.25), run(2, 5.25), run(0, 0.000001)]
    batch = ClaimedBatch.of(reversed(runs))
    assert batch == runs
    assert (len(batch), batch[-1], batch[1:3]) == (4, runs[3], runs[1:3])
    assert list(batch) == runs


def test_a_batch_equals_any_sequence_of_its_runs() -> None:
    """And nothing else; being equal to a list, it is no key either."""
    batch = ClaimedBatch.of([run(1, 1.0)])
    assert batch == [run(1, 1.0)]
    assert batch != [run(1, 2.0)]
    assert batch != 1
    assert repr(batch) == "<ClaimedBatch of 1>"
    with pytest.raises(TypeError, match="unhashable"):
        hash(batch)


def test_ages_run_from_deadline_to_stamp_and_leave_older_deadlines_out() -> None:
    """The greatest first; a deadline at the bound counts, one before it does not."""
    odd = ClaimedRun(UUID(int=7), UUID(int=8), datetime.min.replace(tzinfo=UTC), STAMP)
    bound = ClaimedRun(UUID(int=9), UUID(int=8), SINCE, STAMP)
    batch = ClaimedBatch.of([run(1, 0.5), odd, run(2, 30.0), bound])
    assert batch.ages(SINCE) == pytest.approx([(STAMP - SINCE).total_seconds(), 30.0, 0.5], abs=1e-6)
    assert ClaimedBatch.of([odd]).ages(SINCE) == []
    assert ClaimedBatch([]).ages(SINCE) == []


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (-math.inf, datetime.min.replace(tzinfo=UTC)),
        (-63_000_000_000.0, datetime.min.replace(tzinfo=UTC)),
        (0.0, datetime(1970, 1, 1, tzinfo=UTC)),
        (STAMP.timestamp(), STAMP),
        (300_000_000_000.0, datetime.max.replace(tzinfo=UTC)),
        (math.inf, datetime.max.replace(tzinfo=UTC)),
    ],
)
def test_moments_that_python_cannot_express_are_the_nearest_that_it_can(seconds: float, expected: datetime) -> None:
    """Others may write any time that PostgreSQL has; those within range are exact to the microsecond."""
    assert moment(seconds) == expected
