"""One sweep: mark what is overdue, learn what comes next.

`Sweeper.run_once` is the whole story of enforcement. It holds no claims in memory and no transaction open:
each claim is one statement that has committed when its answer arrives, so a daemon may die or freeze at any
point and leaves nothing to clean up. It raises whatever the database raises; the loop around it decides
what that means. Only a single run that the database refuses to mark is set aside (`isolation`), and the others marked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from sqlalchemy import Connection

from curfew_daemon.crew import DEEP, Crew, CrewLink
from curfew_daemon.isolation import Isolation
from curfew_daemon.passes import Claims, Tally
from curfew_daemon.results import MarkedBatch, SweepResult
from curfew_daemon.rivals import Rivals
from curfew_daemon.scan import LowWaterMark
from curfew_store import enforcement
from curfew_store.hints import Hint
from curfew_store.records import LookAhead
from curfew_store.schema import Tables

__all__ = ["DUE_FOR_SURE", "Sweeper"]

# Reasons to wake for which something is known to be due; for the others a look comes first, so that an
# idle daemon costs one small read-only statement and no transaction id.
DUE_FOR_SURE: Final = frozenset({"deadline", "more", "hint"})


@dataclass(frozen=True, slots=True)
class _Look:
    """A look ahead and when it was asked for, on the monotonic clock."""

    ahead: LookAhead
    asked: float

    @property
    def overdue_age(self) -> float:
        """How long the earliest overdue run has been overdue, in seconds; 0 where none is."""
        earliest = self.ahead.earliest_overdue
        return 0.0 if earliest is None else (self.ahead.now - earliest).total_seconds()


class Sweeper:
    """Marks overdue runs through *connect*, a callable that returns a live connection in autocommit.

    *batch_size* is asked before each claim for the most that it may mark. *on_batch* is told of every batch after its
    commit, *beat* is called between any two waits on the database, and *stopping* is asked between batches: a drain is
    cut short, never a batch. *mark* says where each search begins. The links of *crew* help with a deep backlog, and
    then call *on_batch* in threads of their own; *on_progress* is told only of batches of the sweep's own thread.
    """

    def __init__(
        self,
        tables: Tables,
        connect: Callable[[], Connection],
        *,
        batch_size: Callable[[], int],
        on_batch: Callable[[MarkedBatch], None],
        on_progress: Callable[[], None] = lambda: None,
        beat: Callable[[], None] = lambda: None,
        stopping: Callable[[], bool] = lambda: False,
        mark: LowWaterMark | None = None,
        crew: Sequence[CrewLink] = (),
        on_crew_failure: Callable[[Exception], None] = lambda _error: None,
        on_crew_success: Callable[[], None] = lambda: None,
        isolation: Isolation | None = None,
    ) -> None:
        self._tables = tables
        self._connect = connect
        self._claims = Claims(tables, most=batch_size, on_batch=on_batch, stopping=stopping, isolation=isolation)
        self._crew = Crew(crew, self._claims, on_crew_failure, on_crew_success)
        self._on_progress = on_progress
        self._beat = beat
        self._stopping = stopping
        self._mark = LowWaterMark(lambda: 1.0) if mark is None else mark
        self._known: Connection | None = None  # the connection that the mark belongs to
        self._due_at: float | None = None  # the next deadline that the last look knew of, monotonic
        self._rivals: Rivals[UUID] = Rivals()
        enforcement.compile_statements(tables)

    def expect(self, hint: Hint, due_at: float) -> None:
        """The next sweep is for a run that no look has seen, due at *due_at* on the monotonic clock."""
        self._rivals.told(hint.run_id, hint.deadline)
        self._due_at = due_at

    def run_once(self, reason: str = "poll", *, slack: float = 0.0) -> SweepResult:
        """Mark every run that is overdue and not held by others, then look ahead.

        *reason* says why the sweep woke and is handed on in the result. A run that has been overdue for less than
        *slack* seconds is left to a faster daemon. ``next_due_in`` of the result counts from the end of the sweep.
        """
        started = time.monotonic()
        conn = self._connected()
        self._rivals.begin()
        tally = Tally()
        look: _Look | None = None
        if reason not in DUE_FOR_SURE or slack:
            look = self._look_ahead(conn, tally)
        while look is None or (look.ahead.overdue and look.overdue_age >= slack):
            known = self._due_at
            self._drain(conn, tally)
            look = self._look_ahead(conn, tally)
            # A deadline that fell between claim and look would pass for a run that others hold, and wait with it.
            if tally.marked or known is None or known > time.monotonic() or self._stopping():
                break
        return self._result(reason, slack, started, tally, look)

    def _connected(self) -> Connection:
        conn = self._connect()
        self._beat()
        if conn is not self._known:
            self._known = conn
            self._mark.reset()
            self._rivals.forget()
        return conn

    def _result(self, reason: str, slack: float, started: float, tally: Tally, look: _Look) -> SweepResult:
        ended = time.monotonic()
        ahead = look.ahead
        return SweepResult(
            reason=reason,
            marked=tally.marked,
            batches=tally.batches,
            statements=tally.statements,
            duration=ended - started,
            run_ids=tuple(tally.run_ids),
            lag_max=tally.lag_max,
            # Counted from when the look was sent: a claim sent that long after arrives just in time.
            next_due_in=None if ahead.next_due_in is None else ahead.next_due_in - (ended - look.asked),
            overdue_remains=ahead.overdue,
            overdue_age=look.overdue_age,
            known_lag=self._rivals.known_lag,
            beaten=self._rivals.beaten,
            full_look=tally.full_look,
            full_look_period=self._mark.period,
            full_look_in=self._mark.full_look_in,
            slack=slack,
            seen=(ahead.now, look.asked),
        )

    def _look_ahead(self, conn: Connection, tally: Tally) -> _Look:
        since, expected = self._mark.look_from(), self._rivals.expected
        asked = time.monotonic()
        ahead = enforcement.look_ahead(conn, self._tables, since=since, expected=expected)
        tally.statements += 1
        if since is None:
            tally.full_look = ahead.took  # a distant server's is as good as a near one's
        self._mark.learned(
            now=ahead.now, earliest_overdue=ahead.earliest_overdue, full=since is None, duration=ahead.took
        )
        self._due_at = None if ahead.next_due_in is None else asked + ahead.next_due_in
        self._rivals.looked(
            now=ahead.now,
            earliest_overdue=ahead.earliest_overdue,
            next_run=ahead.next_run_id,
            next_due_in=ahead.next_due_in,
            expected_marked=ahead.expected_marked,
        )
        self._beat()
        return _Look(ahead, asked)

    def cancel(self) -> None:
        """Have the server end what the further connections have in hand; for any thread, waits a second at most."""
        self._crew.cancel()

    def crew_ends_within(self, seconds: float) -> bool:
        """Wait for what the further connections have in hand; whether none of them is at it any more."""
        return self._crew.ends_within(seconds, self._beat)

    def close(self) -> None:
        """Give the further connections up; only once none of them is at it any more."""
        self._crew.close()

    def _drain(self, conn: Connection, tally: Tally) -> None:
        """Passes from the mark until one of them begins with a batch that is not full.

        Within a pass a cursor continues behind the last batch, past entries that are dead but still seen by
        old transactions. It can jump over a run whose deadline was moved meanwhile, hence the further pass, which
        begins at the mark again and never at the cursor.
        """
        while self._one_pass(conn, tally) > 1 and not self._stopping():
            pass

    def _one_pass(self, conn: Connection, tally: Tally) -> int:
        """Claims behind a cursor until a batch comes back short; the number of claims."""
        since = self._mark.since
        before = tally.marked

        def claimed(batch: MarkedBatch, full: bool) -> None:
            if batch.runs:
                self._rivals.claimed(
                    batch.runs, stamp=batch.runs[0].timed_out_at, round_trip=batch.round_trip, full=full
                )
                self._on_progress()
            if full and tally.marked - before >= DEEP:
                self._crew.call(since)
            self._beat()

        claims = self._claims.one_pass(conn, tally, since, after_each=claimed)
        tally.merge(self._crew.finish(self._beat))
        return claims
