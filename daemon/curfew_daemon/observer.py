"""The gauges that cost a query: how many runs are armed and overdue, on a schedule and with a budget."""

from __future__ import annotations

import time
from typing import Final

from curfew_daemon.database import Link, refuse_upstream_engine
from curfew_daemon.results import Observation
from curfew_store.inspection import gauges
from curfew_store.schema import Tables

__all__ = ["COUNT_BOUND", "Observer"]

COUNT_BOUND: Final = 10_000
"""Counts stop here and say so; counting a million index entries every few seconds is nobody's wish."""


class Observer:
    """Looks at the table through a connection of its own, whose statements are bounded by the budget."""

    def __init__(self, tables: Tables, link: Link) -> None:
        self._tables = tables
        self._link = link

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

    def close(self) -> None:
        """Give the connection up."""
        self._link.close()
