"""One sweep: mark what is overdue, learn what comes next.

`Sweeper.run_once` is the whole story of enforcement. It holds no claims in memory and no transaction open:
each claim is one statement that has committed when its answer arrives, so a daemon may die or freeze at any
point and leaves nothing to clean up. It raises whatever the database raises; the loop around it decides
what that means.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from sqlalchemy import Connection

from curfew_daemon.results import MarkedBatch, SweepResult
from curfew_daemon.scan import LowWaterMark
from curfew_store import enforcement
from curfew_store.records import ClaimedRun, LookAhead, ScanStart
from curfew_store.schema import Tables

__all__ = ["Sweeper"]

SHOWN_RUN_IDS: Final = 5
# Reasons to wake for which something is known to be due; for the others a look comes first, so that an
# idle daemon costs one small read-only statement and no transaction id.
_DUE_FOR_SURE: Final = frozenset({"deadline", "more"})


@dataclass(slots=True)
class _Tally:
    """What one sweep has done so far."""

    marked: int = 0
    batches: int = 0
    statements: int = 0
    run_ids: list[UUID] = field(default_factory=list)
    lag_max: float | None = None
    full_look: float | None = None
    beaten: bool = False

    def add(self, batch: MarkedBatch) -> None:
        self.batches += 1
        self.marked += len(batch.runs)
        self.run_ids += [run.run_id for run in batch.runs[: SHOWN_RUN_IDS - len(self.run_ids)]]
        self.lag_max = max((lag for lag in (self.lag_max, *batch.lags) if lag is not None), default=None)


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

    *batch_size* is asked before each claim. *on_batch* is told of every batch after its commit, *beat* is called
    between any two waits on the database, and *stopping* is asked between batches: a drain is cut short, never a
    batch. *mark* says where each search begins.
    """

    def __init__(
        self,
        tables: Tables,
        connect: Callable[[], Connection],
        *,
        batch_size: Callable[[], int],
        on_batch: Callable[[MarkedBatch], None],
        beat: Callable[[], None] = lambda: None,
        stopping: Callable[[], bool] = lambda: False,
        mark: LowWaterMark | None = None,
    ) -> None:
        self._tables = tables
        self._connect = connect
        self._batch_size = batch_size
        self._on_batch = on_batch
        self._beat = beat
        self._stopping = stopping
        self._mark = LowWaterMark(lambda: 1.0) if mark is None else mark
        self._known: Connection | None = None  # the connection that the mark belongs to
        self._due_at: float | None = None  # the next deadline that the last look knew of, monotonic
        self._expected: UUID | None = None  # and its run

    def run_once(self, reason: str = "poll", *, slack: float = 0.0) -> SweepResult:
        """Mark every run that is overdue and not held by others, then look ahead.

        *reason* says why the sweep woke and is handed on in the result. A run that has been overdue for less than
        *slack* seconds is left to a faster daemon. ``next_due_in`` of the result counts from the end of the sweep.
        """
        started = time.monotonic()
        conn = self._connected()
        tally = _Tally()
        look: _Look | None = None
        if reason not in _DUE_FOR_SURE or slack:
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
        return conn

    def _result(self, reason: str, slack: float, started: float, tally: _Tally, look: _Look) -> SweepResult:
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
            beaten=tally.beaten and reason == "deadline",
            full_look=tally.full_look,
            full_look_period=self._mark.period,
            full_look_in=self._mark.full_look_in,
            slack=slack,
        )

    def _look_ahead(self, conn: Connection, tally: _Tally) -> _Look:
        since, expected = self._mark.look_from(), self._expected
        asked = time.monotonic()
        ahead = enforcement.look_ahead(conn, self._tables, since=since, expected=expected)
        duration = time.monotonic() - asked
        tally.statements += 1
        tally.beaten = tally.beaten or (ahead.expected_marked is True and not tally.marked)
        if since is None:
            tally.full_look = duration
        self._mark.learned(
            now=ahead.now, earliest_overdue=ahead.earliest_overdue, full=since is None, duration=duration
        )
        self._due_at = None if ahead.next_due_in is None else asked + ahead.next_due_in
        self._expected = ahead.next_run_id
        self._beat()
        return _Look(ahead, asked)

    def _drain(self, conn: Connection, tally: _Tally) -> None:
        """Passes from the mark until one of them begins with a batch that is not full.

        Within a pass a cursor continues behind the last batch, past entries that are dead but still seen by
        old transactions. It can jump over a run whose deadline was moved meanwhile, hence the further pass, which
        begins at the mark again and never at the cursor.
        """
        while self._one_pass(conn, tally) > 1 and not self._stopping():
            pass

    def _one_pass(self, conn: Connection, tally: _Tally) -> int:
        """Claims behind a cursor until a batch comes back short; the number of batches."""
        since = self._mark.since
        after: ClaimedRun | ScanStart | None = None if since is None else ScanStart(since)
        batches = 0
        while True:
            limit = self._batch_size()
            claimed = self._claim(conn, tally, limit, after)
            batches += 1
            if len(claimed) < limit or self._stopping():
                return batches
            after = claimed[-1]

    def _claim(
        self, conn: Connection, tally: _Tally, limit: int, after: ClaimedRun | ScanStart | None
    ) -> list[ClaimedRun]:
        sent = time.monotonic()
        claimed = enforcement.claim_overdue(conn, self._tables, limit=limit, after=after)
        round_trip = time.monotonic() - sent
        tally.statements += 1
        if claimed:
            batch = MarkedBatch(tuple(claimed), round_trip)
            tally.add(batch)
            self._on_batch(batch)
        self._beat()
        return claimed
