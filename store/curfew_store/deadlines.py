"""Deadlines as callers give them: a moment, a time from now, or none.

The only clock is the database's. A time from now is added there, to ``statement_timestamp()``: in a
transaction that has been open for a while ``now()`` is its start, and a timeout of a second would be
overdue when it commits. It is added as seconds, since an interval of 24 hours becomes 23 in a session
whose time zone changes to summer time.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any, Final, Literal

from sqlalchemy import ColumnElement, Double, bindparam, func, literal_column

from curfew_store.errors import InvalidValue, WrongType
from curfew_store.schema import TIMESTAMPTZ

__all__ = ["UNSET", "Deadline", "Unset", "checked_moment", "chosen_deadline", "required_timeout", "resolved_deadline"]

FIRST_YEAR: Final = 2000
LAST_YEAR: Final = 9998
# Keeps now + timeout within PostgreSQL's and Python's years without asking the local clock.
LONGEST_TIMEOUT: Final = timedelta(days=365_000)


class Unset(Enum):
    """The type of `UNSET`."""

    UNSET = "unset"

    def __repr__(self) -> str:
        return "UNSET"


UNSET: Final = Unset.UNSET
"""Stands for "not given" where ``None`` has a meaning of its own."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """A checked deadline: *at* a moment in UTC, or *after* a number of seconds, or neither (disarmed)."""

    at: datetime | None = None
    after: float | None = None

    def parameters(self) -> dict[str, Any]:
        """What `given_deadline` takes."""
        return {_AT: self.at, _AFTER: self.after}


_AT: Final = "given_at"
_AFTER: Final = "given_after"


def given_deadline() -> ColumnElement[Any]:
    """A deadline in SQL, by the database's clock: one expression for all three kinds, so that statements can be kept.

    Null where the caller gives none.
    """
    return func.coalesce(bindparam(_AT, type_=TIMESTAMPTZ), from_now(given_seconds()))


def given_seconds() -> ColumnElement[float]:
    """The seconds of a timeout, as a parameter."""
    return bindparam(_AFTER, type_=Double)


def from_now(seconds: ColumnElement[float]) -> ColumnElement[Any]:
    """The moment *seconds* from the start of the statement, in SQL; null for null."""
    zero: ColumnElement[int] = literal_column("0")
    return func.statement_timestamp(type_=TIMESTAMPTZ) + func.make_interval(zero, zero, zero, zero, zero, zero, seconds)


def checked_moment(parameter: str, value: datetime) -> datetime:
    """*value* in UTC if it is aware and within the years that a deadline may have.

    Raises `WrongType` for what is no `datetime`, `InvalidValue` for any other; both name *parameter*.
    """
    if not isinstance(value, datetime):
        raise WrongType(parameter, "a timezone-aware datetime", value)
    if value.utcoffset() is None:
        raise InvalidValue(parameter, "is naive; give it a time zone, for example datetime.now(UTC)")
    try:
        moment = value.astimezone(UTC)
    except OverflowError:
        raise InvalidValue(parameter, "lies beyond what a datetime in UTC can hold") from None
    if not FIRST_YEAR <= moment.year <= LAST_YEAR:
        raise InvalidValue(parameter, f"lies in the year {moment.year}, outside {FIRST_YEAR} to {LAST_YEAR}")
    # A subclass (pandas, freezegun) may not be known to the driver; a plain datetime is.
    return datetime(*moment.timetuple()[:6], moment.microsecond, tzinfo=UTC)


def required_timeout(value: timedelta) -> float:
    """*value* in seconds if it is a positive duration of at most 365,000 days.

    Raises `WrongType` for what is no `timedelta`, `InvalidValue` for any other duration.
    """
    if not isinstance(value, timedelta):
        raise WrongType("timeout", "a datetime.timedelta", value)
    if value <= timedelta(0):
        raise InvalidValue("timeout", f"must be positive, got {value}")
    if value > LONGEST_TIMEOUT:
        raise InvalidValue("timeout", f"must be at most {LONGEST_TIMEOUT.days:,} days, got {value.days:,}")
    return value.total_seconds()


def resolved_deadline(timeout_at_utc: datetime | None, timeout: timedelta | None) -> Deadline:
    """The deadline that the two parameters mean together: one of them, or none at all.

    Raises `InvalidValue` for both, and what `checked_moment` and `required_timeout` raise.
    """
    if timeout_at_utc is not None and timeout is not None:
        raise InvalidValue("timeout", "and timeout_at_utc exclude each other; give one of them")
    if timeout is not None:
        return Deadline(after=required_timeout(timeout))
    return Deadline() if timeout_at_utc is None else Deadline(at=checked_moment("timeout_at_utc", timeout_at_utc))


def chosen_deadline(
    new_timeout_at_utc: datetime | Literal[Unset.UNSET] | None,
    timeout: timedelta | Literal[Unset.UNSET] | None,
) -> Deadline:
    """The deadline for `extend_deadline`: exactly one parameter must be given, and an explicit ``None`` clears.

    Raises `InvalidValue` for both and for neither, and what `checked_moment` and `required_timeout` raise.
    """
    if timeout is UNSET and new_timeout_at_utc is not UNSET:
        moment = new_timeout_at_utc
        return Deadline() if moment is None else Deadline(at=checked_moment("new_timeout_at_utc", moment))
    if new_timeout_at_utc is UNSET and timeout is not UNSET:
        return Deadline() if timeout is None else Deadline(after=required_timeout(timeout))
    raise InvalidValue(
        "new_timeout_at_utc",
        "or timeout must be given, and only one of them; an explicit None clears the deadline",
    )
