"""Hints: a notification of a deadline that is nearer than a daemon's next look, and how a daemon hears it.

A store that was made with ``notify_within`` sends one in the statement that sets such a deadline, so it arrives
when the caller's transaction commits, and never if that rolls back. A hint can be lost without harm: daemons poll.
It costs the producer, since PostgreSQL lets transactions that notify commit one after the other; hence never by
default, and never for a deadline beyond the horizon.

The channel is that of `channel_of`, the payload is the deadline in Unix seconds, a blank and the run's id. Whoever
may connect to a database may notify and listen there, so a hint is believed in no more than that a look is due.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import (
    CTE,
    ColumnElement,
    Connection,
    Double,
    String,
    Uuid,
    bindparam,
    case,
    extract,
    func,
    literal,
    literal_column,
    select,
)

from curfew_store.deadlines import Deadline, from_now, given_deadline
from curfew_store.errors import InvalidValue, WrongType
from curfew_store.schema import quoted

__all__ = [
    "LONGEST_HORIZON",
    "Hint",
    "channel_of",
    "checked_horizon",
    "hint_of_earliest",
    "hint_of_given",
    "is_listening",
    "listen",
    "parsed",
    "probe",
    "unlisten",
    "wants_hint",
]

LONGEST_HORIZON: Final = timedelta(minutes=1)
"""No daemon sleeps longer than ten seconds, so a hint of anything later would be of use to nobody."""

_PREFIX: Final = "curfew."
_LONGEST_NAME: Final = 63  # bytes; PostgreSQL refuses a longer channel
_LONGEST_PAYLOAD: Final = 80
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def channel_of(schema: str) -> str:
    """The channel for the tables in *schema*: ``curfew.`` and its name, or a digest of a name that is too long."""
    channel = _PREFIX + schema
    if len(channel.encode()) <= _LONGEST_NAME:
        return channel
    return _PREFIX + hashlib.sha256(schema.encode()).hexdigest()[:40]


def checked_horizon(notify_within: timedelta | None) -> float | None:
    """*notify_within* in seconds if it is a positive duration of at most a minute; ``None`` sends no hints.

    Raises `WrongType` for what is no `timedelta`, `InvalidValue` for any other duration.
    """
    if notify_within is None:
        return None
    if not isinstance(notify_within, timedelta):
        raise WrongType("notify_within", "a datetime.timedelta or None", notify_within)
    if not timedelta(0) < notify_within <= LONGEST_HORIZON:
        raise InvalidValue("notify_within", f"must be positive and at most {LONGEST_HORIZON}, got {notify_within}")
    return notify_within.total_seconds()


def wants_hint(deadline: Deadline, horizon: float | None) -> bool:
    """Whether the statement that sets *deadline* is to look if it is near. A time from now is compared here."""
    return horizon is not None and deadline != Deadline() and (deadline.after is None or deadline.after <= horizon)


def hint_of_given(schema: str) -> ColumnElement[Any]:
    """What a statement that gives ``given_run_id`` its `given_deadline` selects or returns, to notify if it is near.

    Near is nearer than ``given_horizon`` seconds. Names no column, so it asks for no right on any.
    """
    moment = given_deadline()
    notify = _notify(schema, moment, literal_column("' '"), bindparam("given_run_id", type_=Uuid()))
    return case((moment <= from_now(_given_horizon()), notify))


def hint_of_earliest(schema: str, written: CTE) -> Any:
    """A statement on the rows that *written* returns (``run_id``, ``timeout_at_utc``): one hint, of the earliest.

    Only if it is nearer than ``given_horizon`` seconds.
    """
    earliest = (
        select(written.c.timeout_at_utc, written.c.run_id)
        .where(written.c.timeout_at_utc <= from_now(_given_horizon()))
        .order_by(written.c.timeout_at_utc, written.c.run_id)
        .limit(literal_column("1"))
        .subquery("earliest")
    )
    return select(_notify(schema, earliest.c.timeout_at_utc, literal_column("' '"), earliest.c.run_id))


def _given_horizon() -> ColumnElement[float]:
    return bindparam("given_horizon", type_=Double)


def _notify(schema: str, moment: ColumnElement[Any], *rest: Any) -> ColumnElement[Any]:
    # pg_catalog by name: a function of anybody's in the search path whose types fit better would be called instead.
    payload = func.pg_catalog.concat(extract("epoch", moment), *rest)
    return func.pg_catalog.pg_notify(literal(channel_of(schema), String()), payload)


@dataclass(frozen=True, slots=True)
class Hint:
    """A deadline that somebody has set, and whose."""

    deadline: datetime
    run_id: UUID


def parsed(payload: str) -> Hint | None:
    """The hint that a notification carries, ``None`` for whatever else was sent on the channel."""
    if len(payload) > _LONGEST_PAYLOAD:
        return None
    seconds, _, run_id = payload.partition(" ")
    try:
        return Hint(_EPOCH + timedelta(seconds=float(seconds)), UUID(run_id))
    except (ValueError, OverflowError):
        return None


def listen(conn: Connection, schema: str) -> None:
    """Has the session of *conn*, in autocommit, be sent what is notified for *schema* from now on."""
    # The doubled % is for the driver, which looks for parameters.
    conn.exec_driver_sql(f"LISTEN {quoted(channel_of(schema))}".replace("%", "%%"))


def unlisten(conn: Connection, schema: str) -> None:
    """Takes `listen` back, if the session that answers for *conn* is the one that listens."""
    conn.exec_driver_sql(f"UNLISTEN {quoted(channel_of(schema))}".replace("%", "%%"))


def is_listening(conn: Connection, schema: str) -> bool:
    """Whether the session that answers for *conn* is one that listens; takes no transaction id, writes no WAL."""
    channels = func.pg_catalog.pg_listening_channels().table_valued("channel").render_derived()
    found = channels.c.channel.op("OPERATOR(pg_catalog.=)", is_comparison=True)(literal(channel_of(schema), String()))
    return conn.execute(select(func.count()).select_from(channels).where(found)).scalar_one() > 0


def probe(conn: Connection, schema: str, token: str) -> None:
    """Sends *token* to whoever listens. Takes a transaction id and one WAL record, as every notification does."""
    conn.execute(select(func.pg_catalog.pg_notify(literal(channel_of(schema), String()), literal(token, String()))))
