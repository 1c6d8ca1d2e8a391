"""Passes over what is overdue: claims behind a cursor, in batches that grow, until one comes back short.

A claim commits as a whole, so its first run waits for its last: what is due now and then is marked in small batches,
which commit sooner. A backlog is late anyway and is marked in large ones, which cost less for each run.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final
from uuid import UUID

import sqlalchemy.exc
from sqlalchemy import Connection

from curfew_daemon.failures import blames_a_row, is_statement_timeout
from curfew_daemon.isolation import NARROWING, Isolation
from curfew_daemon.results import MarkedBatch
from curfew_store import enforcement
from curfew_store.records import ClaimedBatch, ClaimedRun, ScanStart
from curfew_store.schema import Tables

__all__ = ["FIRST_BATCH", "Claims", "Tally"]

FIRST_BATCH: Final = 500
"""Runs that the first claim of a pass marks at most; each full batch doubles it, up to the most that is set."""

LARGEST_BATCH: Final = 1 << 30

SHOWN_RUN_IDS: Final = 5

MOST_VANISHED: Final = 3
"""How often in a row the run at fault may have gone when it is looked for, before the sweep fails."""


@dataclass(slots=True)
class Tally:
    """What a sweep, or one of its connections, has done so far."""

    marked: int = 0
    batches: int = 0
    statements: int = 0
    run_ids: list[UUID] = field(default_factory=list)
    lag_max: float | None = None
    full_look: float | None = None

    def add(self, batch: MarkedBatch) -> None:
        """One more batch."""
        self.batches += 1
        self.marked += len(batch.runs)
        self._take(batch.lag_max)
        if missing := SHOWN_RUN_IDS - len(self.run_ids):
            self.run_ids += [run.run_id for run in batch.runs[:missing]]

    def merge(self, other: Tally) -> None:
        """What another connection did, too; its runs come after those that are shown."""
        self.marked += other.marked
        self.batches += other.batches
        self.statements += other.statements
        self._take(other.lag_max)

    def _take(self, lag: float | None) -> None:
        if lag is not None and (self.lag_max is None or lag > self.lag_max):
            self.lag_max = lag


class _Pace:
    """The largest batch that the server manages within its ``statement_timeout``, found by trying.

    A batch that took too long was taken back as a whole, so the next is a quarter of it. With each that was in time
    they double again, up to half of the first that failed, and then grow by an eighth: a server that stood still for a
    while, whatever the size of the batches, is soon sent whole ones. Shared by all connections of a daemon.
    """

    def __init__(self) -> None:
        self.most = LARGEST_BATCH
        self._doubles_to = LARGEST_BATCH
        self._failing = False

    def too_slow(self, limit: int) -> None:
        """A batch of at most *limit* runs was cancelled."""
        if not self._failing:
            self._failing = True
            self._doubles_to = limit // 2
        self.most = max(1, limit // 4)

    def in_time(self, limit: int) -> None:
        """A full batch of *limit* runs was marked."""
        self._failing = False
        if limit >= self.most:
            grown = self.most + max(1, self.most // 8)
            self.most = min(LARGEST_BATCH, max(grown, min(2 * self.most, self._doubles_to)))


class Claims:
    """Claims on any connection in autocommit; *on_batch* is told of every batch after its commit.

    *most* is asked before each claim for the largest batch, *stopping* between two: a pass is cut short, never a
    batch. A run that the database refuses to mark is set aside in *isolation*, and the rest of its batch marked.
    """

    def __init__(
        self,
        tables: Tables,
        *,
        most: Callable[[], int],
        on_batch: Callable[[MarkedBatch], None],
        stopping: Callable[[], bool],
        isolation: Isolation | None = None,
    ) -> None:
        self._tables = tables
        self._most = most
        self._on_batch = on_batch
        self._stopping = stopping
        self._isolation = Isolation() if isolation is None else isolation
        self._pace = _Pace()

    def one_pass(
        self,
        conn: Connection,
        tally: Tally,
        since: datetime | None,
        *,
        after_each: Callable[[MarkedBatch, bool], None] = lambda _batch, _full: None,
        cut_short: Callable[[], bool] = lambda: False,
    ) -> int:
        """Claims from *since* on, behind a cursor, until a batch comes back short; the number of claims.

        *after_each* is told of each batch, empty ones too, and whether it was full. *cut_short* ends this pass as
        *stopping* ends all.
        """
        after: ClaimedRun | ScanStart | None = None if since is None else ScanStart(since)
        claims = vanished = 0
        largest = LARGEST_BATCH
        while True:
            limit = min(self._most(), FIRST_BATCH << min(claims, 20), largest, self._pace.most)
            aside = self._isolation.aside()
            try:
                batch = self._claim(conn, tally, limit, after, aside)
            except sqlalchemy.exc.DBAPIError as error:
                if self._stopping():
                    raise
                if is_statement_timeout(error):
                    self._pace.too_slow(limit)
                if not blames_a_row(error) or vanished > MOST_VANISHED:
                    raise
                narrowed = self._narrowed(conn, limit, after, aside, error)
                vanished = vanished + 1 if narrowed is None else 0
                largest = narrowed or 1
                after_each(MarkedBatch((), 0.0), False)
                continue
            claims += 1
            vanished = 0
            largest = min(largest * NARROWING, LARGEST_BATCH)
            full = len(batch.runs) == limit
            if full:
                self._pace.in_time(limit)
            after_each(batch, full)
            if not full or self._stopping() or cut_short():
                return claims
            after = batch.runs[-1]

    def _narrowed(
        self, conn: Connection, limit: int, after: ClaimedRun | ScanStart | None, aside: list[UUID], error: Exception
    ) -> int | None:
        """The size of the next batch after a refused one; one that was a single run's sets that run aside.

        ``None`` where that run is no longer there to be claimed.
        """
        if limit > 1:
            return max(1, limit // NARROWING)
        run_id = enforcement.first_due(conn, self._tables, after=after, skipping=aside)
        if run_id is None:
            return None
        # A trigger of the whole statement raises without a row, too; then no run is to blame, and this raises.
        enforcement.claim_overdue(conn, self._tables, limit=0)
        if not self._isolation.refuse(run_id, error):
            raise error
        return 1

    def _claim(
        self, conn: Connection, tally: Tally, limit: int, after: ClaimedRun | ScanStart | None, aside: list[UUID]
    ) -> MarkedBatch:
        sent = time.monotonic()
        claimed: ClaimedBatch = enforcement.claim_overdue(conn, self._tables, limit=limit, after=after, skipping=aside)
        batch = MarkedBatch(claimed, time.monotonic() - sent)
        tally.statements += 1
        if claimed:
            tally.add(batch)
            self._on_batch(batch)
        return batch
