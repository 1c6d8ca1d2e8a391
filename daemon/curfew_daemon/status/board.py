"""Where the daemon's threads put down what happened, and the page takes it up as one record."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

from curfew_daemon.results import DatabaseState, MarkedBatch, MarkedRun, Observation
from curfew_daemon.status.facts import Facts, Identity, ListedOverdue, Seen, TableFacts, TimedOutRun, Verdict
from curfew_daemon.status.history import History

__all__ = ["NEWEST", "Board", "late_after"]

NEWEST: Final = 10
"""How many of the runs that were marked last are kept."""

_MISSED_READINGS: Final = 3  # after so many intervals without one, a reading of the table is called old
_NO_LONGER_NOW: Final = 2  # minutes that count as now: the running one and the one before


def late_after(poll_interval: float) -> float:
    """The lag in seconds from which deadlines are late: the promise is one poll interval; a second is for the way."""
    return poll_interval + 1.0


@dataclass(frozen=True, slots=True)
class _Reading:
    at: datetime
    moment: float
    gauges: Observation
    table: TableFacts | None
    overdue: tuple[ListedOverdue, ...]


class Board:
    """Safe across threads; every method is brief and none waits for the database.

    *poll_interval* is asked each time, *observe_interval* is the time between two readings of the table, both in
    seconds. *remedies* says what to do about a state of the database.
    """

    def __init__(
        self,
        identity: Identity,
        *,
        poll_interval: Callable[[], float],
        observe_interval: float,
        remedies: Callable[[DatabaseState], str] = lambda _state: "",
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.identity = identity
        self._poll_interval = poll_interval
        self._old_after = _MISSED_READINGS * observe_interval
        self._remedies = remedies
        self._clock = clock
        self._wall_clock = wall_clock
        self._lock = threading.Lock()
        self._started = clock()
        self._history = History()
        self._marked = 0
        self._marked_at: float | None = None
        self._newest: deque[TimedOutRun] = deque(maxlen=NEWEST)
        self._sweeps = 0
        self._waiting: dict[tuple[UUID, datetime], int] = {}  # overdue runs listed, and the sweeps ended by then
        self._state: DatabaseState | None = None
        self._state_since = self._started
        self._reading: _Reading | None = None

    @property
    def late_after(self) -> float:
        """The lag in seconds from which deadlines are late."""
        return late_after(self._poll_interval())

    def marked(self, batch: MarkedBatch) -> None:
        """A batch was marked by this daemon."""
        now = self._clock()
        kept = batch.runs[-NEWEST:] if self.identity.runs_shown else ()
        newest = [_timed_out(run, batch.round_trip) for run in kept]
        with self._lock:
            self._history.add(now, len(batch.runs), batch.lags)
            self._marked += len(batch.runs)
            self._marked_at = now
            self._newest.extend(newest)

    def swept(self) -> None:
        """A sweep reached its end: whatever is still overdue was passed over."""
        with self._lock:
            self._sweeps += 1

    def database(self, state: DatabaseState) -> None:
        """The state of the database changed."""
        with self._lock:
            self._state, self._state_since = state, self._clock()

    def observed(self, gauges: Observation, table: TableFacts | None) -> None:
        """The table was read; *table* is ``None`` where the page's own queries did not succeed."""
        with self._lock:
            listed = () if table is None else self._listed(table)
            self._reading = _Reading(self._wall_clock(), self._clock(), gauges, table, listed)

    def _listed(self, table: TableFacts) -> tuple[ListedOverdue, ...]:
        # The first sweep to end after a reading may have begun before it; the second has seen it all.
        first_seen = {
            (run.run_id, run.deadline): self._waiting.get((run.run_id, run.deadline), self._sweeps)
            for run in table.overdue
        }
        self._waiting = first_seen
        return tuple(
            ListedOverdue(run, self._sweeps - first_seen[run.run_id, run.deadline] >= 2) for run in table.overdue
        )

    def facts(self) -> Facts:
        """Everything at this moment."""
        with self._lock:
            now = self._clock()
            seen = self._seen(now)
            lag_now, waits = self._lag_now(now, seen)
            return Facts(
                identity=self.identity,
                at=self._wall_clock(),
                up_for=now - self._started,
                verdict=self._verdict(lag_now),
                database=self._state,
                database_for=None if self._state is None else now - self._state_since,
                remedy="" if self._state is None else self._remedies(self._state),
                lag_now=lag_now,
                lag_now_waits=waits,
                last_hour=self._history.total(now),
                minutes=tuple(self._history.minutes(now)),
                marked_since_start=self._marked,
                last_marked_ago=None if self._marked_at is None else now - self._marked_at,
                newest=tuple(reversed(self._newest)),
                seen=seen,
            )

    def _seen(self, now: float) -> Seen | None:
        if (reading := self._reading) is None:
            return None
        age = now - reading.moment
        stale = age > self._old_after or self._state is not DatabaseState.UP
        return Seen(reading.at, age, stale, reading.gauges, reading.table, reading.overdue)

    def _lag_now(self, now: float, seen: Seen | None) -> tuple[float | None, bool]:
        greatest = self._history.total(now, _NO_LONGER_NOW).lags.greatest
        oldest = None if seen is None else seen.gauges.oldest_overdue_age
        if oldest is not None and (greatest is None or oldest > greatest):
            return oldest, True
        return greatest, False

    def _verdict(self, lag_now: float | None) -> Verdict:
        if self._state is None:
            return Verdict.STARTING
        if self._state is not DatabaseState.UP:
            return Verdict.DATABASE_DOWN
        return Verdict.LATE if lag_now is not None and lag_now > self.late_after else Verdict.ON_TIME


def _timed_out(run: MarkedRun, round_trip: float) -> TimedOutRun:
    lag = (run.timed_out_at - run.deadline).total_seconds() + round_trip
    return TimedOutRun(run.run_id, run.flow_id, run.deadline, run.timed_out_at, lag)
