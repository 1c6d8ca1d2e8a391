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

from curfew_daemon.results import MarkedBatch, MarkedRun, SweepResult
from curfew_store import enforcement
from curfew_store.records import ClaimedRun, LookAhead
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

    def add(self, batch: MarkedBatch) -> None:
        self.batches += 1
        self.marked += len(batch.runs)
        self.run_ids += [run.run_id for run in batch.runs[: SHOWN_RUN_IDS - len(self.run_ids)]]
        self.lag_max = max((lag for lag in (self.lag_max, *batch.lags) if lag is not None), default=None)


class Sweeper:
    """Marks overdue runs through *connect*, a callable that returns a live connection in autocommit.

    *batch_size* is asked before each claim. *on_batch* is told of every batch after its commit, *beat* is
    called between any two waits on the database, and *stopping* is asked between batches: a drain is cut
    short, never a batch.
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
    ) -> None:
        self._tables = tables
        self._connect = connect
        self._batch_size = batch_size
        self._on_batch = on_batch
        self._beat = beat
        self._stopping = stopping
        self._due_at: float | None = None  # the next deadline that the last look knew of, monotonic

    def run_once(self, reason: str = "poll") -> SweepResult:
        """Mark every run that is overdue and not held by others, then look ahead.

        *reason* says why the sweep woke and is handed on in the result. ``next_due_in`` of the result counts
        from the moment that the look ahead was sent, so that a claim sent after as long arrives just in time.
        """
        started = time.monotonic()
        conn = self._connect()
        self._beat()
        tally = _Tally()
        ahead: LookAhead | None = None
        if reason not in _DUE_FOR_SURE:
            ahead, asked = self._look_ahead(conn, tally)
        while ahead is None or ahead.overdue:
            known = self._due_at
            self._drain(conn, tally)
            ahead, asked = self._look_ahead(conn, tally)
            # A deadline that fell between claim and look would pass for a run that others hold, and wait with it.
            if tally.marked or known is None or known > time.monotonic() or self._stopping():
                break
        ended = time.monotonic()
        return SweepResult(
            reason=reason,
            marked=tally.marked,
            batches=tally.batches,
            statements=tally.statements,
            duration=ended - started,
            run_ids=tuple(tally.run_ids),
            lag_max=tally.lag_max,
            next_due_in=None if ahead.next_due_in is None else ahead.next_due_in - (ended - asked),
            overdue_remains=ahead.overdue,
        )

    def _look_ahead(self, conn: Connection, tally: _Tally) -> tuple[LookAhead, float]:
        asked = time.monotonic()
        ahead = enforcement.look_ahead(conn, self._tables)
        self._due_at = None if ahead.next_due_in is None else asked + ahead.next_due_in
        tally.statements += 1
        self._beat()
        return ahead, asked

    def _drain(self, conn: Connection, tally: _Tally) -> None:
        """Passes from the start of the index until one of them begins with a batch that is not full.

        Within a pass a cursor continues behind the last batch, past entries that are dead but still seen by
        old transactions. It can jump over a run whose deadline was moved meanwhile, hence the further pass.
        """
        while self._one_pass(conn, tally) > 1 and not self._stopping():
            pass

    def _one_pass(self, conn: Connection, tally: _Tally) -> int:
        """Claims behind a cursor until a batch comes back short; the number of batches."""
        after: ClaimedRun | None = None
        batches = 0
        while True:
            limit = self._batch_size()
            claimed = self._claim(conn, tally, limit, after)
            batches += 1
            if len(claimed) < limit or self._stopping():
                return batches
            after = claimed[-1]

    def _claim(self, conn: Connection, tally: _Tally, limit: int, after: ClaimedRun | None) -> list[ClaimedRun]:
        sent = time.monotonic()
        claimed = enforcement.claim_overdue(conn, self._tables, limit=limit, after=after)
        round_trip = time.monotonic() - sent
        tally.statements += 1
        if claimed:
            runs = tuple(MarkedRun(run.run_id, run.flow_id, run.deadline, run.timed_out_at) for run in claimed)
            batch = MarkedBatch(runs, round_trip)
            tally.add(batch)
            self._on_batch(batch)
        self._beat()
        return claimed
