"""What the checker leaves out after a failover that loses acknowledged writes, and what it does not."""

from __future__ import annotations

from uuid import uuid4

from tests.faults.checker.losses import without_lost_calls
from tests.faults.chronicle import KeyChange
from tests.faults.history import Call
from tests.faults.nemesis import Struck
from tests.faults.record import Record
from tests.faults.strikes import Kind, Moment, Strike

SECOND = 1_000_000


def call(number: int, returned: float | None) -> Call:
    end = None if returned is None else Moment(returned, int(returned * SECOND))
    return Call(number, "a producer", "complete_run", uuid4(), {}, Moment(0.0, 0), end, "ok", True)


def struck(began: float, ended: float, loses: float) -> Struck:
    strike = Strike("F16", Moment(began, int(began * SECOND)), Moment(ended, int(ended * SECOND)), "", loses=loses)
    return Struck(Kind("F16", "failover", "", lambda _lab, _rng: strike), strike, 0.1)


def test_calls_that_returned_while_a_strike_was_losing_are_left_out() -> None:
    """From so many seconds before it began until its end; those before and after are judged, and those without end."""
    calls = [call(number, moment) for number, moment in enumerate((8.9, 9.1, 10.5, 12.1, None))]
    kept = without_lost_calls(Record(calls=calls, struck=(struck(10, 12, 1.0),))).calls
    assert [each.number for each in kept] == [0, 3, 4]


def test_a_call_whose_change_is_there_is_judged() -> None:
    """What reached the standby was not lost, whenever it returned."""
    change = KeyChange(1, uuid4(), "key", 11 * SECOND, 7, "INSERT")
    record = Record(calls=[call(7, 11.0), call(8, 11.0)], key_changes=[change], struck=(struck(10, 12, 1.0),))
    assert [each.number for each in without_lost_calls(record).calls] == [7]


def test_without_a_losing_strike_every_call_is_judged() -> None:
    """A strike that loses nothing excuses nothing."""
    record = Record(calls=[call(1, 11.0)], struck=(struck(10, 12, 0.0),))
    assert without_lost_calls(record) is record
