"""What a daemon learns of the others on its database, from runs that it knew of before they were marked.

Daemons never speak to each other. But a run that one of them meant to mark, and that was marked when it came, tells
of somebody faster; and a run that it had known of and left alone, and that is still there when the slack is over,
tells that whoever was faster is gone. Nothing else counts: a run that was disarmed, or that became visible only
after its deadline, says nothing of others, and while batches come back full there is work for everybody.

Knows no database. Runs are known by any id; moments are the database's, durations are in seconds.
"""

from __future__ import annotations

import bisect
import itertools
import operator
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final, Generic, Protocol, TypeVar

__all__ = ["UNDECIDED_FOR", "Rivals"]

UNDECIDED_FOR: Final = timedelta(seconds=0.1)
"""How long a run that is due, neither marked nor free, may still turn out to be another daemon's: its commit."""

_ROUNDING: Final = timedelta(milliseconds=1)

_DEADLINE: Final = operator.attrgetter("deadline")

RunId = TypeVar("RunId")


class Marked(Protocol):
    """A run that a claim marked."""

    @property
    def run_id(self) -> Any:
        """Its id."""

    @property
    def deadline(self) -> datetime:
        """When it was due."""


class Rivals(Generic[RunId]):
    """Asked to judge each sweep: `begin`, then `claimed` and `looked` for each statement in their order."""

    def __init__(self) -> None:
        self.beaten = False
        """Whether in this sweep the run that it expected proved to have been marked by another daemon."""
        self.known_lag: float | None = None
        """The largest lag that it met in this sweep among the runs which an earlier sweep knew of."""
        self.forget()

    def forget(self) -> None:
        """Nothing is expected any more: another connection, or a pause."""
        self._expected: tuple[RunId, datetime] | None = None
        self._known_from: datetime | None = None
        self._before: datetime | None = None

    @property
    def expected(self) -> tuple[RunId, datetime] | None:
        """The run of which the next look is to say whether it has been marked, and since when.

        A mark before the deadline was no daemon's: a producer set it, or a hint told of a run that had its mark.
        """
        return None if self._expected is None else (self._expected[0], self._expected[1] - _ROUNDING)

    def told(self, run_id: RunId, deadline: datetime) -> None:
        """A hint told of a run ahead of its deadline, which the next sweep is for: it is known like one looked at."""
        self._expected = (run_id, deadline)
        self._known_from = deadline if self._known_from is None else min(deadline, self._known_from)

    def begin(self) -> None:
        """A sweep begins."""
        self.beaten = False
        self.known_lag = None
        self._before = self._known_from
        self._contested = True

    def claimed(self, runs: Sequence[Marked], *, stamp: datetime, round_trip: float, full: bool) -> None:
        """A claim of this sweep marked *runs*, which are in the order of their deadlines."""
        if full or self._among(runs):
            self._contested = False
        if self._before is None:
            return
        first_known = bisect.bisect_left(runs, self._before, key=_DEADLINE)
        if first_known < len(runs):
            lag = (stamp - runs[first_known].deadline).total_seconds() + round_trip
            self.known_lag = lag if self.known_lag is None else max(lag, self.known_lag)

    def _among(self, runs: Sequence[Marked]) -> bool:
        """Whether the expected run is one of these; looked for by its deadline, since a run costs to make ready."""
        if self._expected is None:
            return False
        run_id, moment = self._expected
        first = bisect.bisect_left(runs, moment - _ROUNDING, key=_DEADLINE)
        near = itertools.takewhile(
            lambda run: run.deadline <= moment + _ROUNDING, map(runs.__getitem__, range(first, len(runs)))
        )
        return any(run.run_id == run_id for run in near)

    def looked(
        self,
        *,
        now: datetime,
        earliest_overdue: datetime | None,
        next_run: RunId | None,
        next_due_in: float | None,
        expected_marked: bool | None,
    ) -> None:
        """A look ahead found this, in the words of the store's `LookAhead`."""
        expected = self._expected
        self.beaten = self.beaten or bool(expected_marked and self._contested)
        undecided = (
            expected is not None
            and expected_marked is False
            and earliest_overdue is not None
            and timedelta(0) <= now - expected[1] < UNDECIDED_FOR
        )
        ahead = None if next_due_in is None else now + timedelta(seconds=next_due_in)
        if not undecided:
            self._expected = None if next_run is None or ahead is None else (next_run, ahead)
        known = None if ahead is None else ahead - _ROUNDING
        self._known_from = min((each for each in (earliest_overdue, known) if each is not None), default=None)
