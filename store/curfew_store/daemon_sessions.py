"""The daemons on a database, as the names of their sessions tell: who, which version, how lazy.

The server shows every role the ``application_name`` of every session, so a daemon that writes a few facts about itself
into that of one of its sessions needs no table, no right and no cleaning up after it: with the session the facts go.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import (
    Connection,
    DateTime,
    Double,
    Integer,
    Select,
    String,
    bindparam,
    cast,
    column,
    func,
    literal_column,
    select,
    table,
)

from curfew_store.schema import as_utc

__all__ = ["APPLICATION_PREFIX", "DaemonSessions", "daemon_sessions_statement", "is_pooled", "publish", "session_name"]

APPLICATION_PREFIX: Final = "curfewd "
"""How the name of every session of a daemon begins; the name of the instance follows, and perhaps a version and a
slack. The other commands have words between (``curfewd check …``), which an instance's name cannot have."""

_LONGEST: Final = 63
"""Bytes of an ``application_name``; PostgreSQL cuts off what is beyond."""

_PATTERN: Final = "^curfewd ([^ ]+)(?: v([^ ]+) ([0-9]{1,9})ms)?$"


@dataclass(frozen=True, slots=True)
class DaemonSessions:
    """The sessions of one daemon. *since* is the oldest one's start, unknown to a role without the right to see it.

    *slack* is for how many seconds it leaves an overdue run to the others: 0 for one that is first, up to the poll
    interval for a standby. *version* and *slack* are ``None`` where no session tells.
    """

    instance: str
    sessions: int
    since: datetime | None
    version: str | None = None
    slack: float | None = None


def session_name(instance: str, version: str, slack: float) -> str:
    """The name of a session that tells *version* and *slack* (seconds), or only *instance* where both do not fit."""
    whole = f"{APPLICATION_PREFIX}{instance} v{version} {round(slack * 1000)}ms"
    return whole if len(whole.encode()) <= _LONGEST else f"{APPLICATION_PREFIX}{instance}"


def publish(conn: Connection, name: str) -> None:
    """Call this session *name* from now on; one statement. Not behind a pooler, whose sessions are everybody's."""
    conn.execute(
        select(func.pg_catalog.set_config("application_name", bindparam("name", name), literal_column("false")))
    )


def daemon_sessions_statement() -> Select[Any]:
    """The first ``:daemons`` with a session on this database, by their names, as `DaemonSessions`.

    Reads the server's list of sessions, which is memory and no table.
    """
    activity = table(
        "pg_stat_activity",
        column("application_name", String),
        column("backend_start", DateTime(timezone=True)),
        column("datname", String),
        schema="pg_catalog",
    )
    told = (
        select(
            func.regexp_match(activity.c.application_name, bindparam("pattern", _PATTERN)).label("parts"),
            activity.c.backend_start,
        )
        .where(activity.c.datname == literal_column("current_database()"))
        .subquery("told")
    )
    instance = literal_column("told.parts[1]", String)
    slack = cast(literal_column("told.parts[3]"), Double) / literal_column("1000.0")
    statement: Any = (
        select(
            instance.label("instance"),
            func.count().label("sessions"),
            as_utc(func.min(told.c.backend_start)),
            func.max(literal_column("told.parts[2]", String)).label("version"),
            func.max(slack).label("slack"),
        )
        .where(told.c.parts.is_not(None))
        .group_by(instance)
        .order_by(instance)
        .limit(bindparam("daemons", type_=Integer))
    )
    return statement  # type: ignore[no-any-return]


def is_pooled(conn: Connection) -> bool:
    """Whether something stands between this connection and the server's process; one statement.

    The process id that a server gives at the start of a session is that of the process which then answers. A pooler
    gives one of its own making.
    """
    driver: Any = conn.connection.driver_connection
    return bool(conn.execute(select(func.pg_backend_pid(type_=Integer))).scalar_one() != driver.info.backend_pid)
