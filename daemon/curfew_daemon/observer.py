"""What costs a query: how many runs are armed and overdue, and what the status page shows of the table.

All of it is read on a schedule and with a budget; nobody who looks at a page causes a query.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Final

import sqlalchemy.exc
from sqlalchemy import Connection

from curfew_daemon.database import Link, refuse_upstream_engine
from curfew_daemon.failures import state_of
from curfew_daemon.results import DatabaseState, Observation
from curfew_daemon.status.facts import TableFacts
from curfew_store.daemon_sessions import DaemonSessions, daemon_sessions, is_pooled, publish
from curfew_store.inspection import gauges
from curfew_store.schema import Tables
from curfew_store.status_queries import due_per_minute, longest_overdue

__all__ = ["COUNT_BOUND", "PAGE_BUDGET", "Observer"]

COUNT_BOUND: Final = 10_000
"""Counts stop here and say so; counting a million index entries every few seconds is nobody's wish."""

PAGE_BUDGET: Final = 0.1
"""Seconds that each query of the status page may take; the gauges, which alerts live on, have the settings' budget."""

_MINUTES_AHEAD: Final = 60
_DUE_PER_MINUTE: Final = 1000
_LISTED_RUNS: Final = 10
_LISTED_DAEMONS: Final = 100
_SLOW: Final = frozenset({DatabaseState.STATEMENT_TIMEOUT, DatabaseState.LOCK_TIMEOUT})


class Observer:
    """Looks at the table through a connection of its own, whose statements are bounded by the budget.

    *page_budget* bounds each query of the status page, in seconds. *name*, where given, is asked at each closer look
    for what the session shall be called: what this daemon tells of itself to the others.
    """

    def __init__(
        self, tables: Tables, link: Link, *, page_budget: float = PAGE_BUDGET, name: Callable[[], str] | None = None
    ) -> None:
        self._tables = tables
        self._link = link
        self._page_budget_ms = round(page_budget * 1000)
        self._name = name
        self._published: tuple[Connection, str] | None = None

    def run_once(self) -> Observation:
        """Count, and check that no other engine has moved in; drops the connection on any error and raises it."""
        started = time.monotonic()
        try:
            conn = self._link.connection()
            refuse_upstream_engine(conn, self._tables)
            seen = gauges(conn, self._tables, bound=COUNT_BOUND)
        except Exception:
            self._link.drop()
            raise
        return Observation(
            overdue=seen.overdue,
            overdue_capped=seen.overdue_capped,
            oldest_overdue_age=seen.oldest_overdue_age,
            armed=seen.armed,
            armed_capped=seen.armed_capped,
            next_due_in=seen.next_due_in,
            duration=time.monotonic() - started,
        )

    def look_closer(self, *, runs: bool) -> TableFacts:
        """What the status page shows beyond the gauges, without any run's id unless *runs*.

        Raises what the database raises. A query that took too long leaves the connection as it was, any other error
        drops it.
        """
        conn = self._link.connection()
        try:
            # Local to a transaction, since a pooler would carry a session's own setting to others.
            conn.exec_driver_sql(f"BEGIN READ ONLY; SET LOCAL statement_timeout = {self._page_budget_ms}")
            seen = TableFacts(
                falls_due=tuple(due_per_minute(conn, self._tables, minutes=_MINUTES_AHEAD, bound=_DUE_PER_MINUTE)),
                overdue=tuple(longest_overdue(conn, self._tables, limit=_LISTED_RUNS)) if runs else (),
                daemons=None if is_pooled(conn) else self._fleet(conn),
            )
            conn.exec_driver_sql("COMMIT")
        except Exception as error:
            if state_of(error) not in _SLOW or not self._rolled_back(conn):
                self._link.drop()
            raise
        return seen

    def _rolled_back(self, conn: Connection) -> bool:
        self._published = None  # the name goes back with the rest
        with contextlib.suppress(sqlalchemy.exc.SQLAlchemyError):
            conn.exec_driver_sql("ROLLBACK")
            return True
        return False

    def _fleet(self, conn: Connection) -> tuple[DaemonSessions, ...]:
        if self._name is not None and (wanted := (conn, self._name())) != self._published:
            publish(conn, wanted[1])
            self._published = wanted
        return tuple(daemon_sessions(conn, limit=_LISTED_DAEMONS))

    def close(self) -> None:
        """Give the connection up."""
        self._link.close()
