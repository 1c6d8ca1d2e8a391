"""Runs that the database refuses to mark are set aside for longer and longer, and come back."""

from __future__ import annotations

from uuid import UUID

import psycopg
import pytest

from curfew_daemon.failures import blames_a_row
from curfew_daemon.isolation import FIRST_PAUSE, LONGEST_PAUSE, MOST_ASIDE, Isolation

RUN = UUID(int=1)
REFUSAL = psycopg.errors.RaiseException("poison")


class Bench:
    """An isolation on a clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now = 0.0
        self.told: list[tuple[UUID, float]] = []
        self.isolation = Isolation(lambda run, pause, _: self.told.append((run, pause)), clock=lambda: self.now)


def test_a_refused_run_is_left_out_until_its_pause_is_over() -> None:
    """It is left out at once, and a candidate again afterwards."""
    bench = Bench()
    assert bench.isolation.aside() == []
    assert bench.isolation.refuse(RUN, REFUSAL)
    assert bench.isolation.aside() == [RUN]
    bench.now = FIRST_PAUSE
    assert bench.isolation.aside() == []


def test_pauses_double_up_to_a_bound() -> None:
    """A run that is refused again and again is tried once a minute in the end, and each refusal is told."""
    bench = Bench()
    for _ in range(10):
        bench.isolation.refuse(RUN, REFUSAL)
        bench.now += bench.told[-1][1]
        bench.isolation.aside()
    assert [pause for _, pause in bench.told] == [1, 2, 4, 8, 16, 32, 60, 60, 60, 60]


def test_a_run_that_was_not_refused_again_is_forgotten() -> None:
    """One that was marked, or is due no longer, begins anew if it is ever refused again."""
    bench = Bench()
    bench.isolation.refuse(RUN, REFUSAL)
    bench.now = FIRST_PAUSE + LONGEST_PAUSE
    bench.isolation.aside()
    bench.isolation.refuse(RUN, REFUSAL)
    assert [pause for _, pause in bench.told] == [FIRST_PAUSE, FIRST_PAUSE]


def test_too_many_refusals_are_not_the_fault_of_single_rows() -> None:
    """Beyond the bound nothing more is set aside; those that are may be refused again."""
    bench = Bench()
    assert MOST_ASIDE == 1000
    assert all(bench.isolation.refuse(UUID(int=number), REFUSAL) for number in range(MOST_ASIDE))
    assert not bench.isolation.refuse(UUID(int=MOST_ASIDE), REFUSAL)
    bench.now = FIRST_PAUSE
    assert bench.isolation.refuse(UUID(int=0), REFUSAL)
    assert len(bench.told) == MOST_ASIDE + 1


def test_a_run_that_is_aside_already_stays_as_it_is() -> None:
    """Several connections that meet it in the same moment are one refusal."""
    bench = Bench()
    assert all(bench.isolation.refuse(RUN, REFUSAL) for _ in range(3))
    assert [pause for _, pause in bench.told] == [FIRST_PAUSE]


@pytest.mark.parametrize(
    ("error", "blamed"),
    [
        (psycopg.errors.RaiseException("raised by a trigger"), True),
        (psycopg.errors.CheckViolation("a constraint of somebody's own"), True),
        (psycopg.errors.NumericValueOutOfRange("in a trigger"), True),
        (psycopg.errors.DataCorrupted("a damaged page"), True),
        (psycopg.errors.LockNotAvailable("lock_timeout"), False),
        (psycopg.errors.InsufficientPrivilege("no grant"), False),
        (psycopg.errors.UndefinedColumn("schema"), False),
        (psycopg.errors.AdminShutdown("terminated"), False),
        (psycopg.errors.DiskFull("no space"), False),
        (psycopg.OperationalError("the connection is lost"), False),
        (ValueError("a defect of ours"), False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_only_errors_of_a_row_are_blamed_on_one(error: Exception, blamed: bool) -> None:
    """What a row's content, trigger or page can cause; not what concerns connection, table or server."""
    assert blames_a_row(error) is blamed
