"""What costs a query: how many runs are armed and overdue, and what the status page shows of the table.

All of it is read on a schedule, in one statement and with a budget; nobody who looks at a page causes a query.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection

from curfew_daemon.database import Link, NoAnswer, upstream_engine_refusal
from curfew_daemon.results import Observation
from curfew_daemon.status.facts import TableFacts
from curfew_store.daemon_sessions import is_pooled, publish
from curfew_store.observation import Observed, PageBounds, observe
from curfew_store.schema import Tables

__all__ = ["COUNT_BOUND", "WITHOUT_PAGE", "Observer", "Reading"]

COUNT_BOUND: Final = 10_000
"""Counts stop here and say so; counting a million index entries every few seconds is nobody's wish."""

WITHOUT_PAGE: Final = 60.0
"""Seconds for which only the gauges are read after the whole did not come within the budget: alerts live on them."""

_MINUTES_AHEAD: Final = 60
_DUE_PER_MINUTE: Final = 1000
_LISTED_RUNS: Final = 10
_LISTED_DAEMONS: Final = 100


@dataclass(frozen=True, slots=True)
class Reading:
    """The gauges, and what the page shows beyond them: ``None`` where it has to go without, *error* says why."""

    gauges: Observation
    table: TableFacts | None
    error: Exception | None = None


class Observer:
    """Looks at the table through a connection of its own, whose statements are bounded by the budget.

    *name*, where given, is asked each time for what the session shall be called: what this daemon tells of itself to
    the others.
    """

    def __init__(
        self,
        tables: Tables,
        link: Link,
        *,
        name: Callable[[], str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tables = tables
        self._link = link
        self._name = name
        self._clock = clock
        self._whole_from = float("-inf")
        self._known: Connection | None = None  # the connection that the next two belong to
        self._pooled = False
        self._published: str | None = None

    def run_once(self, *, runs: bool) -> Reading:
        """Count, look closer for the page, without any run's id unless *runs*, and check that no engine has moved in.

        Drops the connection on any error that leaves no gauges and raises it.
        """
        started = time.monotonic()
        try:
            seen, error = self._seen(self._link.connection(), runs)
        except Exception:
            self._link.drop()
            raise
        if seen.upstream_engine:
            self._link.drop()
            raise upstream_engine_refusal(self._tables)
        gauges = seen.gauges
        return Reading(
            Observation(
                overdue=gauges.overdue,
                overdue_capped=gauges.overdue_capped,
                oldest_overdue_age=gauges.oldest_overdue_age,
                armed=gauges.armed,
                armed_capped=gauges.armed_capped,
                next_due_in=gauges.next_due_in,
                duration=time.monotonic() - started,
            ),
            self._facts(seen),
            error,
        )

    def _seen(self, conn: Connection, runs: bool) -> tuple[Observed, Exception | None]:
        failed: Exception | None = None
        if self._clock() >= self._whole_from:
            try:
                return self._whole(conn, runs), None
            except Exception as error:
                if isinstance(getattr(error, "orig", None), NoAnswer):
                    self._go_without_page()
                if conn.invalidated:
                    raise
                failed = error
        seen = observe(conn, self._tables, bound=COUNT_BOUND)
        if failed is not None:  # and the gauges are to be had
            self._go_without_page()
        return seen, failed

    def _go_without_page(self) -> None:
        self._whole_from = self._clock() + WITHOUT_PAGE

    def _whole(self, conn: Connection, runs: bool) -> Observed:
        if conn is not self._known:
            self._pooled, self._published = is_pooled(conn), None
            self._known = conn
        if self._name is not None and not self._pooled and (wanted := self._name()) != self._published:
            publish(conn, wanted)
            self._published = wanted
        page = PageBounds(
            minutes=_MINUTES_AHEAD,
            per_minute=_DUE_PER_MINUTE,
            runs=_LISTED_RUNS if runs else 0,
            daemons=0 if self._pooled else _LISTED_DAEMONS,
        )
        return observe(conn, self._tables, bound=COUNT_BOUND, page=page)

    def _facts(self, seen: Observed) -> TableFacts | None:
        if seen.page is None:
            return None
        return TableFacts(seen.page.falls_due, seen.page.overdue, None if self._pooled else seen.page.daemons)

    def close(self) -> None:
        """Give the connection up."""
        self._link.close()
