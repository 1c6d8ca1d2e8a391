"""What callers may give as a deadline, and the SQL that it becomes."""

from __future__ import annotations

import copy
import pickle
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy.dialects import postgresql

from curfew_store import UNSET, InvalidValue, WrongType
from curfew_store.deadlines import Deadline, chosen_deadline, given_deadline, required_timeout, resolved_deadline

NOW = datetime(2030, 5, 6, 7, 8, 9, 101112, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.mark.contract("F-2")
@pytest.mark.parametrize(
    ("given", "instant"),
    [
        (NOW, NOW),
        (
            datetime(2030, 1, 1, 5, 45, tzinfo=timezone(timedelta(hours=5, minutes=45))),
            datetime(2030, 1, 1, tzinfo=UTC),
        ),
        (datetime(2026, 3, 29, 2, 30, tzinfo=ZoneInfo("Europe/Berlin")), datetime(2026, 3, 29, 1, 30, tzinfo=UTC)),
        (datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Berlin")), datetime(2026, 10, 25, 0, 30, tzinfo=UTC)),
        (
            datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin")),
            datetime(2026, 10, 25, 1, 30, tzinfo=UTC),
        ),
        (datetime(2000, 1, 1, tzinfo=UTC), datetime(2000, 1, 1, tzinfo=UTC)),
        (datetime(1999, 12, 31, 23, tzinfo=timezone(-HOUR)), datetime(2000, 1, 1, tzinfo=UTC)),
        (
            datetime(9998, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
            datetime(9998, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
        ),
    ],
    ids=str,
)
def test_moments_become_utc(given: datetime, instant: datetime) -> None:
    """A moment is converted to the same instant in UTC, exactly."""
    assert resolved_deadline(given, None) == Deadline(at=instant)
    assert chosen_deadline(given, UNSET) == Deadline(at=instant)


class Stamp(datetime):
    """A subclass, as pandas and freezegun have."""


@pytest.mark.contract("F-2")
def test_a_subclass_becomes_a_plain_datetime() -> None:
    """The driver knows datetime itself; a subclass of it is turned into one."""
    resolved = resolved_deadline(Stamp(2030, 5, 6, 7, 8, 9, 101112, tzinfo=UTC), None)
    assert resolved.at == NOW
    assert type(resolved.at) is datetime


@pytest.mark.contract("F-1")
@pytest.mark.parametrize(
    ("given", "says"),
    [
        (datetime(2030, 1, 1), "naive"),  # noqa: DTZ001
        (datetime(1999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC), "year 1999"),
        (datetime(2000, 1, 1, tzinfo=timezone(HOUR)), "year 1999"),
        (datetime(9999, 1, 1, tzinfo=UTC), "year 9999"),
        (datetime(9998, 12, 31, 23, 30, tzinfo=timezone(-HOUR)), "year 9999"),
        (datetime(1, 1, 1, tzinfo=timezone(HOUR)), "beyond"),
        (datetime(9999, 12, 31, 23, 59, tzinfo=timezone(-HOUR)), "beyond"),
    ],
    ids=str,
)
def test_moments_that_are_refused(given: datetime, says: str) -> None:
    """Naive moments and years outside 2000 to 9998, in UTC, are invalid values of the parameter they were given as."""
    with pytest.raises(InvalidValue, match=says) as raised:
        resolved_deadline(given, None)
    assert raised.value.parameter == "timeout_at_utc"
    with pytest.raises(InvalidValue, match=says) as raised:
        chosen_deadline(given, UNSET)
    assert raised.value.parameter == "new_timeout_at_utc"


@pytest.mark.contract("A-3")
@pytest.mark.parametrize(
    "given", [timedelta(0), -HOUR, timedelta.min, timedelta.max, timedelta(days=365_000, seconds=1)]
)
def test_durations_that_are_refused(given: timedelta) -> None:
    """A duration that is not positive, or longer than the years that the store deals in, is invalid."""
    with pytest.raises(InvalidValue) as raised:
        required_timeout(given)
    assert raised.value.parameter == "timeout"


@pytest.mark.contract("A-3", "Z-2")
@pytest.mark.parametrize("given", [None, 10, 1.5, float("inf"), float("nan"), True, "10", NOW], ids=repr)
def test_durations_of_the_wrong_type(given: Any) -> None:
    """Seconds as a number are refused: only a timedelta says what its unit is."""
    with pytest.raises(WrongType, match=r"datetime\.timedelta"):
        required_timeout(given)


@pytest.mark.contract("A-2", "A-3")
def test_durations_are_seconds() -> None:
    """A duration becomes its seconds, from a microsecond to a thousand years."""
    assert required_timeout(timedelta(days=1)) == 86_400.0
    assert required_timeout(timedelta(microseconds=1)) == 1e-06
    assert required_timeout(timedelta(days=365_000)) == 365_000 * 86_400.0


@pytest.mark.contract("A-3", "C-3", "L-2")
def test_which_parameters_go_together() -> None:
    """Both is an error everywhere; neither disarms where a deadline is optional and is an error for an extension."""
    assert resolved_deadline(None, None) == Deadline()
    with pytest.raises(InvalidValue, match="exclude each other"):
        resolved_deadline(NOW, HOUR)
    assert chosen_deadline(None, UNSET) == chosen_deadline(UNSET, None) == Deadline()
    assert chosen_deadline(UNSET, HOUR) == Deadline(after=3600.0)
    pairs: list[tuple[Any, Any]] = [(UNSET, UNSET), (NOW, HOUR), (None, None), (NOW, None), (None, HOUR)]
    for first, second in pairs:
        with pytest.raises(InvalidValue, match="only one of them"):
            chosen_deadline(first, second)


@pytest.mark.contract("A-1", "A-2")
def test_the_sql_of_a_deadline() -> None:
    """A time from now is added as seconds to the start of the statement; a moment is bound; none is NULL."""
    sql = str(given_deadline().compile(dialect=postgresql.dialect()))  # type: ignore[no-untyped-call]
    assert sql.endswith("statement_timestamp() + make_interval(0, 0, 0, 0, 0, 0, %(given_after)s))")
    assert Deadline(after=86_400.0).parameters() == {"given_at": None, "given_after": 86_400.0}
    assert Deadline(at=NOW).parameters() == {"given_at": NOW, "given_after": None}
    assert Deadline().parameters() == {"given_at": None, "given_after": None}


@pytest.mark.contract("L-2")
def test_unset_is_one_thing() -> None:
    """UNSET stays itself through copies and pickles, since it is compared by identity, and shows as its name."""
    assert copy.deepcopy(UNSET) is pickle.loads(pickle.dumps(UNSET)) is UNSET
    assert repr(UNSET) == "UNSET"
